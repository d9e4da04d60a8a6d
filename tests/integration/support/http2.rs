//! HTTP/2 by hand, for clients that keep none of its rules.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::pki;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// SETTINGS_INITIAL_WINDOW_SIZE.
pub(crate) const INITIAL_WINDOW: u16 = 4;

/// For a write that nobody takes.
const STUCK: Duration = Duration::from_secs(5);

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header field, neither indexed nor compressed; fewer than 127 bytes of name,
/// fewer than 16,000 of value.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
    bytes.extend_from_slice(name.as_bytes());
    // RFC 7541, section 5.1: a prefix of 7 bits, then 7 bits a byte.
    match value.len().checked_sub(127) {
        None => bytes.push(u8::try_from(value.len()).unwrap()),
        Some(rest) => bytes.extend([
            127,
            0x80 | u8::try_from(rest % 128).unwrap(),
            u8::try_from(rest / 128).unwrap(),
        ]),
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes
}

/// The header fields of a gRPC call.
pub(crate) fn call_fields(path: &str) -> Vec<u8> {
    [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "localhost"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    .into_iter()
    .flat_map(|(name, value)| field(name, value))
    .collect()
}

/// Begins a call.
pub(crate) fn open_call(stream: u32, path: &str, more: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &[&call_fields(path)[..], more].concat())
}

/// DATA frames with these bytes, the last of which ends the stream.
pub(crate) fn data(stream: u32, bytes: &[u8]) -> Vec<u8> {
    let last = bytes.len().saturating_sub(1) / 16_384;
    let flags = |index| if index == last { END_STREAM } else { 0 };
    let pieces = bytes.chunks(16_384).enumerate();
    pieces.flat_map(|(index, piece)| frame(DATA, flags(index), stream, piece)).collect()
}

/// A gRPC message, uncompressed.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// What the server sent.
struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

/// What one side of a connection came to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Heard {
    pub(crate) answers: usize,
    pub(crate) resets: usize,
    /// Streams, by a reset or in order.
    pub(crate) ended: usize,
    /// Answers to PING.
    pub(crate) pongs: usize,
    /// The error code of its GOAWAY.
    pub(crate) goaway: Option<u32>,
}

pub(crate) struct Http2 {
    write: WriteHalf<TlsStream<TcpStream>>,
    read: Option<ReadHalf<TlsStream<TcpStream>>>,
}

impl Http2 {
    /// A connection over TLS on which nothing was said yet.
    pub(crate) async fn silent(
        address: SocketAddr,
        config: &Arc<ClientConfig>,
    ) -> io::Result<Self> {
        let (read, write) = split(pki::connect(address, Arc::clone(config)).await?);
        Ok(Self { write, read: Some(read) })
    }

    /// One on which HTTP/2 has begun, with these settings.
    pub(crate) async fn open(
        address: SocketAddr,
        config: &Arc<ClientConfig>,
        settings: &[(u16, u32)],
    ) -> io::Result<Self> {
        let mut connection = Self::silent(address, config).await?;
        let settings: Vec<_> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        connection.send(PREFACE).await?;
        connection.send(&frame(SETTINGS, 0, 0, &settings)).await?;
        Ok(connection)
    }

    /// Fails when the connection has ended, and when nothing is taken.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let send = async {
            self.write.write_all(bytes).await?;
            self.write.flush().await
        };
        timeout(STUCK, send).await?
    }

    /// Waits for the end of the connection.
    pub(crate) async fn ended(mut self) {
        let read = self.read.as_mut().expect("not listened to");
        while next(read).await.is_ok() {}
    }

    /// Reads on aside, to the end of the connection.
    pub(crate) fn listen(&mut self) -> Listener {
        let mut read = self.read.take().expect("not listened to yet");
        let heard = Arc::<Mutex<Heard>>::default();
        let note = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            while let Ok(Frame { kind, flags, payload }) = next(&mut read).await {
                let mut heard = note.lock().unwrap();
                heard.ended += usize::from(kind == RST_STREAM || ends(kind, flags));
                match kind {
                    HEADERS => heard.answers += 1,
                    RST_STREAM => heard.resets += 1,
                    PING if flags == ACK => heard.pongs += 1,
                    GOAWAY => {
                        let code = payload[4..8].try_into().unwrap();
                        heard.goaway = Some(u32::from_be_bytes(code));
                    }
                    _ => {}
                }
            }
        });
        Listener { heard, task }
    }
}

fn ends(kind: u8, flags: u8) -> bool {
    [HEADERS, DATA].contains(&kind) && flags & END_STREAM > 0
}

/// Listens to a connection.
pub(crate) struct Listener {
    heard: Arc<Mutex<Heard>>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(crate) fn heard(&self) -> Heard {
        *self.heard.lock().unwrap()
    }

    /// Whether the server has ended the connection.
    pub(crate) fn ended(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn next(read: &mut ReadHalf<TlsStream<TcpStream>>) -> io::Result<Frame> {
    let mut head = [0; 9];
    read.read_exact(&mut head).await?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    let mut payload = vec![0; length];
    read.read_exact(&mut payload).await?;
    Ok(Frame { kind: head[3], flags: head[4], payload })
}
