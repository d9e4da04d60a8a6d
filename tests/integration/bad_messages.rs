//! What is refused as a whole: messages that do not decode or are too large,
//! metadata, and more secrets than a workspace may hold.

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use tonic::{
    Code, Request, Response, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataValue,
};
use tonic_types::StatusExt as _;

use super::support::{
    pki::Identity,
    platform::{
        Platform, Replica, assert_refused, create, delete, get, list, resolve, update, with,
    },
};

const WS: &str = "ws";

/// Sends and receives messages as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Calls a method with these bytes as message.
async fn send(
    platform: &Platform,
    replica: &Replica,
    method: &str,
    message: &[u8],
) -> Result<Response<Bytes>, Status> {
    send_request(platform, replica, method, Request::new(Bytes::copy_from_slice(message))).await
}

async fn send_request(
    platform: &Platform,
    replica: &Replica,
    method: &str,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, Status> {
    let read = |end: &str| std::fs::read_to_string(platform.file(&format!("platform.{end}")));
    let identity = Identity { cert: read("crt").unwrap(), key: read("key").unwrap() };
    let channel = platform.channel(replica, Some(&identity)).await;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = format!("/workflowsecrets.v1.SecretsService/{method}").parse().unwrap();
    client.unary(request, path, Raw).await
}

/// A string field of a message, by its number; fewer than 128 bytes.
fn field(number: u8, text: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(text.len()).unwrap()], text].concat()
}

#[tokio::test]
async fn messages_that_do_not_decode() {
    let platform = Platform::start().await;
    let replica = platform.replica_with(&["--log", "trace"]).await;
    let good = create(WS, "KEY", "canary").encode_to_vec();
    assert_eq!(good, [field(1, b"ws"), field(2, b"KEY"), field(3, b"canary")].concat());

    let bad: [&[u8]; 8] = [
        // Not UTF-8: workspace, name, value.
        &[&good[..], &field(1, b"canary\xff")].concat(),
        &[&good[..], &field(2, b"canary\xc3")].concat(),
        &[&good[..], &field(3, b"canary\xed\xa0\x80")].concat(),
        // Cut off; a length beyond the end; another wire type; field 0; a
        // varint without end.
        &good[..good.len() - 1],
        b"\x0a\x7fcanary",
        b"\x08\x01",
        b"\x02\x06canary",
        &[0xff; 11],
    ];
    for method in ["CreateSecret", "UpdateSecret"] {
        for message in bad {
            let outcome = send(&platform, &replica, method, message).await;
            let status = assert_refused(outcome, Code::InvalidArgument, "MALFORMED_MESSAGE");
            let told = format!("{status:?} {:?}", status.get_error_details());
            assert!(!told.contains("canary"), "{told}");
        }
    }
    assert_eq!(platform.redis.cli(&["DBSIZE"]), "0");
    assert!(!replica.stderr().contains("canary") && !replica.stdout().contains("canary"));

    // What is merely not known is skipped, as protobuf wants.
    let newer = [&good[..], &field(15, b"canary")].concat();
    send(&platform, &replica, "CreateSecret", &newer).await.unwrap();
    let outcome = send(&platform, &replica, "NoSuchCall", &good).await;
    assert_refused(outcome, Code::Unimplemented, "UNIMPLEMENTED");
}

#[tokio::test]
async fn compressed_messages() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut request = Request::new(create(WS, "KEY", "value").encode_to_vec().into());
    request.metadata_mut().insert("grpc-encoding", MetadataValue::from_static("gzip"));
    let outcome = send_request(&platform, &replica, "CreateSecret", request).await;
    let status = assert_refused(outcome, Code::Unimplemented, "UNIMPLEMENTED");
    assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "identity");
}

#[tokio::test]
async fn messages_that_are_too_large() {
    const MOST: usize = 256 * 1024;
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;

    // Just the size decides which error it is.
    let sized = |total: usize| {
        let rest = create(WS, "KEY", "").encoded_len();
        // Tag and a length of three bytes.
        let request = create(WS, "KEY", &"x".repeat(total - rest - 4));
        assert_eq!(request.encoded_len(), total);
        request
    };
    let outcome = client.create_secret(sized(MOST)).await;
    assert_refused(outcome, Code::ResourceExhausted, "VALUE_TOO_LARGE");
    for size in [MOST + 1, 1024 * 1024] {
        let outcome = client.create_secret(sized(size)).await;
        assert_refused(outcome, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    }
    let long = "x".repeat(MOST);
    let outcome = client.get_secret(get(&long, "KEY")).await;
    assert_refused(outcome, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let outcome = client.list_secrets(list(&long)).await;
    assert_refused(outcome, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let outcome = client.delete_secret(delete(WS, &long)).await;
    assert_refused(outcome, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let change = with(update(WS, "KEY"), |r| r.description = Some(long.clone()));
    let outcome = client.update_secret(change).await;
    assert_refused(outcome, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    let mut executor = platform.client(&replica, "executor").await;
    let outcome = executor.resolve_secrets(resolve(&long, &["KEY"])).await;
    assert_refused(outcome, Code::ResourceExhausted, "MESSAGE_TOO_LARGE");

    // The largest message that makes sense fits, and nothing was stored.
    assert_eq!(platform.redis.cli(&["DBSIZE"]), "0");
    let full = with(create(WS, &"N".repeat(128), &"x".repeat(65_536)), |r| {
        r.description = "🔑".repeat(1_024);
    });
    client.create_secret(full).await.unwrap();
}

#[tokio::test]
async fn metadata_that_names_nobody() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut client = platform.client(&replica, "platform").await;

    let text = |actor: &str| {
        let mut request = Request::new(create(WS, "KEY", "value"));
        request.metadata_mut().insert("x-actor", MetadataValue::try_from(actor).unwrap());
        request
    };
    let binary = |actor: &[u8]| {
        let mut request = Request::new(create(WS, "KEY", "value"));
        request.metadata_mut().insert_bin("x-actor-bin", MetadataValue::from_bytes(actor));
        request
    };
    let both = |mut request: Request<_>| {
        request.metadata_mut().append("x-actor", MetadataValue::from_static("canary"));
        request
    };
    let (long, wide) = (format!("{:x<257}", "canary"), "é".repeat(257));
    for (field, request) in [
        ("x-actor", text("")),
        ("x-actor", text(&long)),
        ("x-actor", text("canary\ta")),
        ("x-actor", both(text("zoe"))),
        ("x-actor", both(binary(b"zoe"))),
        ("x-actor-bin", binary(b"")),
        ("x-actor-bin", binary(wide.as_bytes())),
        ("x-actor-bin", binary(b"canary\n")),
        ("x-actor-bin", binary(b"canary\xff")),
    ] {
        let outcome = client.create_secret(request).await;
        let status = assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
        let details = status.get_error_details();
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!((violations.len(), violations[0].field.as_str()), (1, field));
        assert!(!format!("{status:?} {details:?}").contains("canary"));
    }
    assert_eq!(platform.redis.cli(&["DBSIZE"]), "0");
    assert!(!replica.stdout().contains("canary"));

    // A trace that is none is ignored, as W3C wants.
    let mut request = binary("é".repeat(256).as_bytes());
    request.metadata_mut().insert("traceparent", MetadataValue::from_static("00-canary"));
    client.create_secret(request).await.unwrap();
}

#[tokio::test]
async fn a_workspace_holds_so_many_secrets_and_no_more() {
    let platform = Platform::start().await;
    let replica = platform.replica_with(&["--max-secrets-per-workspace", "3"]).await;
    let mut client = platform.client(&replica, "platform").await;
    for name in ["A", "B", "C"] {
        client.create_secret(create(WS, name, "value")).await.unwrap();
    }
    let upsert = with(update(WS, "D"), |r| {
        r.value = Some("value".to_owned());
        r.allow_missing = true;
    });
    for outcome in [
        client.create_secret(create(WS, "D", "value")).await,
        client.create_secret(with(create(WS, "D", "value"), |r| r.request_id = "r".into())).await,
        client.update_secret(upsert.clone()).await,
    ] {
        let status = assert_refused(outcome, Code::ResourceExhausted, "QUOTA_EXCEEDED");
        let details = status.get_error_details();
        assert!(details.quota_failure().unwrap().violations[0].description.contains('3'));
    }
    // What is there can be changed, and other workspaces have room.
    client.update_secret(with(upsert.clone(), |r| r.name = "C".to_owned())).await.unwrap();
    client.create_secret(create("ws2", "D", "value")).await.unwrap();

    client.delete_secret(delete(WS, "B")).await.unwrap();
    client.update_secret(upsert).await.unwrap();
    let outcome = client.create_secret(create(WS, "B", "value")).await;
    assert_refused(outcome, Code::ResourceExhausted, "QUOTA_EXCEEDED");
    let page = client.list_secrets(list(WS)).await.unwrap().into_inner();
    let names: Vec<_> = page.secrets.iter().map(|secret| secret.name.as_str()).collect();
    assert_eq!(names, ["A", "C", "D"]);
}
