//! Before a call is made: connections, handshakes, prefaces.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout},
};

use super::{CUT, Siege};
use crate::support::http2::{Http2, PREFACE, SETTINGS, frame};

/// Not as many as the server bears, which is tested with a lower limit; more
/// than it would bear if handshakes waited for each other.
const CONNECTIONS: usize = 400;

/// Another address than that of the well-behaved.
async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(address).await.unwrap()
}

/// Waits for the end of a connection.
async fn cut(mut stream: TcpStream) {
    let read = timeout(CUT, stream.read_to_end(&mut vec![])).await;
    drop(read.expect("cut"));
}

/// A ClientHello that never ends.
const HALF_HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

#[tokio::test]
async fn who_never_ends_a_handshake_is_cut() {
    let siege = Siege::start().await;
    for (what, hello) in [("silence", &b""[..]), ("half a handshake", HALF_HELLO)] {
        siege
            .under(what, async {
                let mut streams = vec![];
                for _ in 0..CONNECTIONS {
                    let mut stream = connect(siege.replica.address).await;
                    stream.write_all(hello).await.unwrap();
                    streams.push(stream);
                }
                // The others come in all the while.
                siege.others.until_served(3).await;
                for stream in streams {
                    cut(stream).await;
                }
            })
            .await;
    }
    siege.end().await;
}

#[tokio::test]
async fn what_is_no_tls_is_refused_at_once() {
    let siege = Siege::start().await;
    let h2 = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    for hello in [&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &h2, &[0xff; 4_096]] {
        siege
            .under("no TLS", async {
                let mut stream = connect(siege.replica.address).await;
                let start = Instant::now();
                stream.write_all(hello).await.unwrap();
                cut(stream).await;
                // Not when the time of a handshake is over.
                assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
            })
            .await;
    }
    siege.end().await;
}

/// Also of those whose certificate is good, which live longer otherwise.
#[tokio::test]
async fn who_never_begins_with_http2_is_cut() {
    let siege = Siege::start().await;
    let config = siege.config(Some("stranger"));
    siege
        .under("no preface", async {
            let mut connections = vec![];
            for index in 0..60 {
                let mut one = Http2::silent(siege.replica.address, &config).await.unwrap();
                // Nothing, or half of it; what follows comes too slowly.
                one.send(&PREFACE[..index % 3]).await.unwrap();
                connections.push(one);
            }
            let mut trickle = connections.pop().unwrap();
            let trickle = async {
                for byte in &PREFACE[2..] {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    trickle.send(&[*byte]).await?;
                }
                io::Result::Ok(())
            };
            let (trickled, ()) = tokio::join!(timeout(CUT, trickle), async {
                for one in connections {
                    timeout(CUT, one.ended()).await.expect("cut");
                }
            });
            assert!(trickled.expect("cut").is_err());
        })
        .await;
    siege.end().await;
}

#[tokio::test]
async fn who_begins_with_something_else_is_cut_at_once() {
    let siege = Siege::start().await;
    for caller in [None, Some("stranger")] {
        for hello in [
            &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
            // A frame of 16 MiB.
            &[PREFACE, &[0xff; 64]].concat(),
        ] {
            siege
                .under("no HTTP/2", async {
                    let config = siege.config(caller);
                    let mut one = Http2::silent(siege.replica.address, &config).await.unwrap();
                    let start = Instant::now();
                    one.send(hello).await.unwrap();
                    timeout(CUT, one.ended()).await.expect("cut");
                    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
                })
                .await;
        }
    }
    siege.end().await;
}
