//! Redact: values in a stream, whatever way it is cut.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tonic::Code;
use workflow_secrets::grpc::{
    ServerConfig,
    proto::{self, ValueEncoding as Encoding, unmasked_secret::Reason},
};

use super::support::{
    documents::{Open, chunk, open, opening, redact, violations},
    edge::{CALLER, Edge},
    platform::{Client, Platform, Replica, create, delete, reason, update, with},
    redis_server::{Options, until},
};

const WS: &str = "ws";
const KEY: &str = "sk_live_51H8wJqKZvFm0pXb";

async fn stage(flags: &[&str]) -> (Platform, Replica, Client, Client) {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica_with(flags).await;
    let mut people = platform.client(&replica, "platform").await;
    for (name, value) in [("STRIPE_KEY", KEY), ("PIN", "1234"), ("HOST", "localhost")] {
        people.create_secret(create(WS, name, value)).await.unwrap();
    }
    let reader = platform.client(&replica, "executor").await;
    (platform, replica, people, reader)
}

fn number(encoding: Encoding) -> i32 {
    encoding.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_masked_across_all_cuts_and_tallied() {
    let (_platform, replica, _people, mut reader) = stage(&[]).await;
    let basic = STANDARD.encode(format!("me:{KEY}"));
    let text = format!("got {KEY}, {KEY}\nAuthorization: Basic {basic}\nPIN 1234 at localhost\n");
    let whole = redact(&mut reader, open(WS, &[]), &[text.as_bytes()]).await.unwrap();
    let start = "got {{secrets.STRIPE_KEY}}, {{secrets.STRIPE_KEY}}\nAuthorization: Basic ";
    assert!(whole.text.starts_with(start), "{}", whole.text);
    assert!(whole.text.ends_with("\nPIN 1234 at localhost\n"));
    assert!(!whole.text.contains(&basic[6..basic.len() - 4]));
    let name = || "STRIPE_KEY".to_owned();
    let masked = [(name(), number(Encoding::Raw), 2), (name(), number(Encoding::Base64), 1)];
    assert_eq!(whole.masked, masked);
    let unmasked = [("HOST", Reason::CommonWord), ("PIN", Reason::TooShort)];
    let unmasked = unmasked.map(|(name, reason)| (name.to_owned(), i32::from(reason)));
    assert_eq!(whole.unmasked, unmasked.into());
    assert_eq!(whole.input_bytes, text.len() as u64);
    for size in [1, 2, 7, 23, 24, 25, 64] {
        let chunks: Vec<_> = text.as_bytes().chunks(size).collect();
        let cut = redact(&mut reader, open(WS, &["STRIPE_KEY", "PIN", "HOST"]), &chunks).await;
        let cut = cut.unwrap();
        assert_eq!((cut.text, cut.masked), (whole.text.clone(), whole.masked.clone()), "{size}");
    }

    let short = proto::RedactOpen { mask_short: true, ..open(WS, &[]) };
    let all = redact(&mut reader, short, &[text.as_bytes()]).await.unwrap();
    assert!(all.text.ends_with("\nPIN {{secrets.PIN}} at {{secrets.HOST}}\n"), "{}", all.text);
    assert!(all.unmasked.is_empty());

    // One line per name asked for, or one for all; then one per secret found.
    let lines = replica.audit();
    let lines: Vec<_> = lines.iter().filter(|line| line["action"] == "redact").collect();
    assert!(lines.iter().all(|line| line["run_id"] == "run-1"));
    let first: Vec<_> = lines[..7]
        .iter()
        .map(|line| (line["outcome"].as_str().unwrap(), line["secret"].as_str()))
        .collect();
    let expected = [
        ("ok", None),
        ("found", Some("STRIPE_KEY")),
        ("ok", Some("HOST")),
        ("ok", Some("PIN")),
        ("ok", Some("STRIPE_KEY")),
        ("found", Some("STRIPE_KEY")),
        ("ok", Some("HOST")),
    ];
    assert_eq!(first, expected);
    assert_eq!(lines[1]["matches"], json!(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_come_back_as_soon_as_they_cannot_begin_a_value() {
    let (_platform, replica, mut people, mut reader) = stage(&[]).await;
    let mut stream = Open::start(&mut reader, open(WS, &["STRIPE_KEY"])).await;
    stream.send(b"first line\n").await;
    let answer = stream.next().await.unwrap().unwrap();
    assert_eq!((&*answer.chunk, answer.input_bytes), (&b"first line\n"[..], 11));
    stream.send(b"then sk_live_51").await;
    let answer = stream.next().await.unwrap().unwrap();
    assert_eq!((&*answer.chunk, answer.input_bytes), (&b"then "[..], 16));

    // What is looked for was settled when the stream opened.
    let change = with(update(WS, "STRIPE_KEY"), |r| r.value = Some("another-value".to_owned()));
    people.update_secret(change).await.unwrap();
    people.delete_secret(delete(WS, "STRIPE_KEY")).await.unwrap();
    stream.send(&KEY.as_bytes()[10..]).await;
    stream.send(b" end").await;
    let answer = stream.next().await.unwrap().unwrap();
    assert_eq!(&*answer.chunk, b"{{secrets.STRIPE_KEY}}");
    assert_eq!(&*stream.next().await.unwrap().unwrap().chunk, b" end");

    // A client that leaves leaves the lines of what was found.
    drop(stream);
    let found = || replica.audit().iter().filter(|line| line["outcome"] == "found").count();
    until(|| found() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_stream_of_redact_is_refused() {
    let (platform, replica, _people, mut reader) = stage(&[]).await;
    for caller in ["platform", "operator", "sheets", "stranger"] {
        let mut client = platform.client(&replica, caller).await;
        let status = redact(&mut client, open(WS, &[]), &[b"x"]).await.err().unwrap();
        assert_eq!(reason(&status), (Code::PermissionDenied, "NOT_GRANTED".to_owned()));
    }
    let refused = async |reader: &mut Client, requests: Vec<proto::RedactRequest>| {
        let answers = reader.redact(futures_util::stream::iter(requests)).await;
        let mut answers = match answers {
            Err(status) => return reason(&status),
            Ok(answers) => answers.into_inner(),
        };
        loop {
            match answers.message().await {
                Ok(answer) => assert!(answer.is_some(), "not refused"),
                Err(status) => return reason(&status),
            }
        }
    };
    let invalid = (Code::InvalidArgument, "INVALID_FIELD".to_owned());
    for requests in [
        vec![],
        vec![chunk(b"x")],
        vec![proto::RedactRequest::default()],
        vec![opening(open("no workspace", &[]))],
        vec![opening(open(WS, &["no-name"]))],
        vec![opening(proto::RedactOpen { all_names: true, ..open(WS, &["PIN"]) })],
        vec![opening(proto::RedactOpen { all_names: false, ..open(WS, &[]) })],
        vec![opening(open(WS, &[])), opening(open(WS, &[]))],
        vec![opening(open(WS, &[])), chunk(b"x"), proto::RedactRequest::default()],
    ] {
        assert_eq!(refused(&mut reader, requests).await, invalid);
    }
    let names: Vec<_> = (0..101).map(|number| format!("K{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let many = refused(&mut reader, vec![opening(open(WS, &names))]).await;
    assert_eq!(many, (Code::ResourceExhausted, "TOO_MANY_REFERENCES".to_owned()));
    let large = vec![opening(open(WS, &[])), chunk(&[b'x'; 300 * 1024])];
    let large = refused(&mut reader, large).await;
    assert_eq!(large, (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));

    let status = redact(&mut reader, open(WS, &["PIN", "GONE"]), &[]).await.err().unwrap();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "SECRETS_UNRESOLVED".to_owned()));
    assert_eq!(violations(&status), [("MISSING".into(), "GONE".into(), String::new())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_opened_so_often_and_end_with_the_replica() {
    let (_platform, mut replica, _people, mut reader) =
        stage(&["--max-redactions-per-minute", "2", "--shutdown-grace", "10s"]).await;
    redact(&mut reader, open(WS, &[]), &[b"x"]).await.unwrap();
    let mut stream = Open::start(&mut reader, open(WS, &["STRIPE_KEY"])).await;
    let status = redact(&mut reader, open(WS, &[]), &[b"x"]).await.err().unwrap();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "RATE_LIMITED".to_owned()));

    stream.send(format!("{KEY} and sk_live_").as_bytes()).await;
    let answer = stream.next().await.unwrap().unwrap();
    assert_eq!((&*answer.chunk, answer.input_bytes), (&b"{{secrets.STRIPE_KEY}} and "[..], 29));
    replica.terminate();
    let status = stream.next().await.err().unwrap();
    assert_eq!(reason(&status), (Code::Unavailable, "SHUTTING_DOWN".to_owned()));
    assert!(replica.ended(Duration::from_secs(8)).await.success());
    let last = replica.audit().pop().unwrap();
    assert_eq!((&last["outcome"], &last["matches"]), (&json!("found"), &json!(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_streams_end_and_so_many_are_open() {
    let config = ServerConfig {
        // Longer than a stream waits for its place.
        redaction_idle: Duration::from_secs(3),
        max_redactions: 4,
        ..ServerConfig::default()
    };
    let edge = Edge::start(config).await;
    let mut client = edge.client(CALLER).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(Open::start(&mut client, open(WS, &[])).await);
    }
    let refused = redact(&mut client, open(WS, &[]), &[]).await.err().unwrap();
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "OVERLOADED".to_owned()));
    for mut stream in streams {
        let status = stream.next().await.err().unwrap();
        assert_eq!(reason(&status), (Code::DeadlineExceeded, "TIMEOUT".to_owned()));
    }
    redact(&mut client, open(WS, &[]), &[b"x"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_cut_does_not_look_complete() {
    let config = ServerConfig { redaction_idle: Duration::from_secs(2), ..ServerConfig::default() };
    let edge = Edge::start(config).await;
    let mut client = edge.client(CALLER).await;
    client.create_secret(create(WS, "STRIPE_KEY", KEY)).await.unwrap();
    let mut stream = Open::start(&mut client, open(WS, &[])).await;
    // More than the client takes unread: answers pile up in the service.
    let requests = stream.requests.clone();
    let sending = tokio::spawn(async move {
        let filler = [KEY.as_bytes(), &[b'.'; 200 * 1024]].concat();
        while requests.send(chunk(&filler)).await.is_ok() {}
    });
    let ended = || String::from_utf8_lossy(&edge.audit.lock().unwrap()).contains("found");
    until(ended).await;
    let status = loop {
        match stream.next().await {
            Ok(answer) => assert!(answer.expect("an error ends it").tally.is_none()),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&status), (Code::DeadlineExceeded, "TIMEOUT".to_owned()));
    sending.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_chunk_passes() {
    let edge = Edge::start(ServerConfig::default()).await;
    let mut client = edge.client(CALLER).await;
    for (length, why) in [(255 * 1024, None), (256 * 1024, Some("MESSAGE_TOO_LARGE"))] {
        let text = vec![b'.'; length];
        match redact(&mut client, open(WS, &[]), &[&text]).await {
            Ok(done) => assert_eq!((done.text.into_bytes() == text, why), (true, None)),
            Err(status) => assert_eq!(Some(&*reason(&status).1), why),
        }
    }
}
