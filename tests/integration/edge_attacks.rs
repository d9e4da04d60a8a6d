//! What those try who reach the port, and callers who take more than their part.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status, body::Body};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use workflow_secrets::grpc::{ServerConfig, accept::AcceptLimits};

use super::support::{
    edge::{CALLER, Edge, PATIENCE, announce, call, refusal, send, stalled},
    http2::{HEADERS, Http2, PREFACE, SETTINGS, frame, open_call},
    pki,
    platform::{Client, assert_refused, create, list, reason, resolve},
};

const RESOLVE: &str = "/workflowsecrets.v1.SecretsService/ResolveSecrets";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const OTHER: &str = "spiffe://test/other";

/// Streams of health watches, and of reflection, at once.
const STREAMS: usize = 64;

fn overloaded() -> (Code, String) {
    (Code::ResourceExhausted, "OVERLOADED".to_owned())
}

async fn listed(client: &mut Client) -> Result<(), (Code, String)> {
    client.list_secrets(list("ws")).await.map(|_| ()).map_err(|status| reason(&status))
}

/// Calls until the server has room again.
async fn until_room(client: &mut Client) {
    let room = async {
        while let Err(error) = listed(client).await {
            assert_eq!(error, overloaded());
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, room).await.expect("the place is given back");
}

#[tokio::test]
async fn the_unidentified_are_refused_before_they_take_a_place() {
    let config = ServerConfig {
        max_calls: 2,
        // Whoever has a place here keeps it.
        call_timeout: 10 * PATIENCE,
        ..ServerConfig::default()
    };
    let server = Edge::start(config).await;
    let nobody = server.channel(None).await;
    for _ in 0..5 {
        let answer = stalled(&nobody, RESOLVE, vec![]).await;
        let status = refusal(&answer).expect("refused at once");
        assert_eq!(reason(&status), (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()));
    }
    assert!(server.audit.lock().unwrap().is_empty(), "anybody could fill the stream");
    assert_eq!(listed(&mut server.client(CALLER).await).await, Ok(()));
}

#[tokio::test]
async fn one_caller_leaves_places_to_others() {
    let config = ServerConfig {
        max_calls: 3,
        max_calls_per_caller: 2,
        call_timeout: 10 * PATIENCE,
        ..ServerConfig::default()
    };
    let server = Edge::start(config).await;
    let mut held = vec![];
    for _ in 0..2 {
        // Its own connection each time: the share is the caller's.
        let channel = server.channel(Some(CALLER)).await;
        held.push(tokio::spawn(async move { stalled(&channel, RESOLVE, announce(100)).await }));
    }
    let mut client = server.client(CALLER).await;
    let full = async { while listed(&mut client).await != Err(overloaded()) {} };
    timeout(PATIENCE, full).await.expect("no more than its share");
    // The policy grants it nothing, but that is another refusal.
    let mut other = server.client(OTHER).await;
    assert_refused(other.list_secrets(list("ws")).await, Code::PermissionDenied, "NOT_GRANTED");
    held.into_iter().for_each(|call| call.abort());
    until_room(&mut client).await;
}

#[tokio::test]
async fn a_message_that_never_ends_is_waited_for_no_longer_than_a_call_may_take() {
    let call_timeout = Duration::from_millis(300);
    let server = Edge::start(ServerConfig { call_timeout, ..ServerConfig::default() }).await;
    let caller = server.channel(Some(CALLER)).await;
    let answer = stalled(&caller, RESOLVE, announce(100)).await;
    let status = refusal(&answer).unwrap();
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "TIMEOUT".to_owned()));
}

#[tokio::test]
async fn reflection_and_watches_are_bounded_and_delay_no_health_check() {
    let config = ServerConfig { call_timeout: Duration::from_secs(5), ..ServerConfig::default() };
    let server = Edge::start(config).await;
    let nobody = server.channel(None).await;
    let mut check = HealthClient::new(nobody.clone());

    // The name of the service, empty, is the message of a watch.
    let watches = (0..STREAMS).map(|_| call(&nobody, WATCH, announce(0)));
    let mut watches = join_all(watches).await;
    assert!(watches.iter().all(|answer| refusal(answer).is_none()));
    let surplus = call(&nobody, WATCH, announce(0)).await;
    assert_eq!(refusal(&surplus).map(|status| reason(&status)), Some(overloaded()));

    let reflections = (0..STREAMS).map(|_| stalled(&nobody, REFLECTION, announce(100)));
    let reflections = join_all(reflections).await;
    assert!(reflections.iter().all(|answer| refusal(answer).is_none()));
    let surplus = stalled(&nobody, REFLECTION, announce(100)).await;
    assert_eq!(refusal(&surplus).map(|status| reason(&status)), Some(overloaded()));
    check.check(HealthCheckRequest::default()).await.unwrap();

    // A watch ends with its client, reflection with its time.
    drop(watches.pop());
    let room = async {
        while refusal(&call(&nobody, WATCH, announce(0)).await).is_some() {
            sleep(Duration::from_millis(50)).await;
        }
        while refusal(&stalled(&nobody, REFLECTION, announce(100)).await).is_some() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, room).await.expect("room again");
    assert!(watches.iter().all(|answer| refusal(answer).is_none()));
}

#[tokio::test]
async fn only_small_messages_are_taken_from_the_unidentified() {
    // What ends, ends because of the size.
    let config = ServerConfig { call_timeout: 10 * PATIENCE, ..ServerConfig::default() };
    let server = Edge::start(config).await;
    let nobody = server.channel(None).await;
    let large = announce(4 * 1024 + 1);
    let check = stalled(&nobody, "/grpc.health.v1.Health/Check", large.clone()).await;
    let status = refusal(&check).expect("refused");
    assert_eq!(reason(&status), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));
    for path in [REFLECTION, &REFLECTION.replace("v1", "v1alpha")] {
        let mut answer = stalled(&nobody, path, large.clone()).await;
        timeout(PATIENCE, trailers(answer.body_mut())).await.expect("ended");
    }
}

/// The status that an answer ends with.
async fn trailers(body: &mut Body) -> Status {
    use http_body::Body as _;

    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await;
        match frame.expect("trailers").map(http_body::Frame::into_trailers) {
            Ok(Ok(trailers)) => return Status::from_header_map(&trailers).unwrap(),
            Ok(Err(_data)) => {}
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn connections_without_identity_are_few_and_short() {
    let life = Duration::from_secs(4);
    let limits =
        AcceptLimits { max_unidentified: 2, unidentified_life: life, ..AcceptLimits::default() };
    let server = Edge::start_with(ServerConfig::default(), limits).await;
    let anonymous = pki::client_config(&server.ca, None);
    let connect = || pki::connect(server.address, Arc::clone(&anonymous));
    let start = Instant::now();
    // The server's first frame shows that it is served.
    let open = async || {
        let mut stream = connect().await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        stream.read_u8().await.unwrap();
        stream
    };
    let mut oldest = open().await;
    let mut second = open().await;
    // One more, such as a health check, is served all the same.
    let mut third = open().await;
    let cut = timeout(PATIENCE, oldest.read_to_end(&mut vec![])).await.expect("cut for the third");
    drop(cut);
    assert!(start.elapsed() < life, "too slow a machine to tell");
    assert_eq!(listed(&mut server.client(CALLER).await).await, Ok(()));

    for stream in [&mut second, &mut third] {
        let cut = timeout(PATIENCE, stream.read_to_end(&mut vec![])).await.expect("cut");
        drop(cut);
        assert!(start.elapsed() >= life);
    }
}

/// A frame that comes byte by byte keeps its connection for a time only.
#[tokio::test]
async fn a_frame_without_end_is_cut_off() {
    let keepalive = Duration::from_secs(1);
    let server = Edge::start(ServerConfig { keepalive, ..ServerConfig::default() }).await;
    let identity = server.ca.client(&[CALLER]);
    let config = pki::client_config(&server.ca, Some(&identity));
    for begun in [open_call(1, RESOLVE, &[]), frame(HEADERS, 0, 1, &[])] {
        let mut one = Http2::open(server.address, &config, &[]).await.unwrap();
        let listener = one.listen();
        // The head of it, and no more than half of the rest.
        one.send(&begun[..begun.len() - 1]).await.unwrap();
        let late = async {
            while !listener.ended() {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(PATIENCE, late).await.expect("cut");
    }
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let limits = AcceptLimits { expiry_grace: Duration::ZERO, ..AcceptLimits::default() };
    let server = Edge::start_with(ServerConfig::default(), limits).await;
    let identity = server.ca.expiring_client(CALLER, Duration::from_secs(3));
    let config = pki::client_config(&server.ca, Some(&identity));
    let mut stream = pki::connect(server.address, config).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut vec![])).await.expect("cut");
}

fn young(age: u64, call: u64) -> ServerConfig {
    let (age, call) = (Duration::from_millis(age), Duration::from_millis(call));
    ServerConfig { max_connection_age: age, call_timeout: call, ..ServerConfig::default() }
}

#[tokio::test]
async fn an_old_connection_is_asked_to_end_before_it_is_cut() {
    let server = Edge::start(young(500, 1_000)).await;
    let channel = server.channel(Some(CALLER)).await;
    // Asked to end by now, but not cut: a call under way may last until 1.5 s.
    sleep(Duration::from_millis(1_300)).await;
    // Takes longer than that to send its message.
    let (first, rest) = (Bytes::from_static(&[0, 0]), Bytes::from_static(&[0, 0, 0]));
    let late = stream::once(async {
        sleep(Duration::from_millis(400)).await;
        Ok(rest)
    });
    let body = stream::iter([Ok::<_, std::io::Error>(first)]).chain(late);
    let body = axum::body::Body::from_stream(body);
    let answer = send(&channel, "/grpc.health.v1.Health/Check", body).await;
    assert!(refusal(&answer).is_none());
}

#[tokio::test]
async fn an_old_connection_is_cut_in_the_end() {
    let server = Edge::start(young(200, 200)).await;
    let channel = server.channel(Some(CALLER)).await;
    // Would hold the connection for ever.
    let mut watch = call(&channel, WATCH, announce(0)).await;
    let status = timeout(PATIENCE, trailers(watch.body_mut())).await.expect("cut");
    assert_ne!(status.code(), Code::Ok);
}

#[tokio::test]
async fn an_answer_that_nobody_reads_keeps_its_place_for_a_time() {
    let config = ServerConfig {
        max_calls: 1,
        call_timeout: Duration::from_secs(2),
        ..ServerConfig::default()
    };
    let server = Edge::start(config).await;
    let mut client = server.client(CALLER).await;
    client.create_secret(create("ws", "KEY", &"v".repeat(65_536))).await.unwrap();
    // 6 MiB, more than a client takes unread.
    let names: Vec<_> = (0..100).map(|i| format!("KEY=A{i}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let message = resolve("ws", &names).encode_to_vec();
    let bytes = [announce(u32::try_from(message.len()).unwrap()), message].concat();

    let hoarder = server.channel(Some(CALLER)).await;
    until_room(&mut client).await;
    let unread = call(&hoarder, RESOLVE, bytes).await;
    assert!(refusal(&unread).is_none());
    assert_eq!(listed(&mut client).await, Err(overloaded()));
    until_room(&mut client).await;
    drop(unread);
}
