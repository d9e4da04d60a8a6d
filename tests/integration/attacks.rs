//! Attacks that a reviewer made on the service, by those who have some rights
//! in it or may write to its store.

use tonic::{Code, metadata::BinaryMetadataValue};
use workflow_secrets::{
    domain::{SecretName, WorkspaceId},
    store::{
        Batch, Commit, Expect, Key, Operation, Record, Store as _, Write, codec,
        redis::{RedisConfig, RedisStore, RedisUrl},
    },
};

use super::support::platform::{Platform, assert_refused, create, list, resolve, update};

/// A caller who is granted nothing cannot multiply its bytes into the audit
/// stream.
#[tokio::test]
async fn a_refused_call_writes_no_flood_of_audit_lines() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut stranger = platform.client(&replica, "stranger").await;
    let names: Vec<String> = (0..100).map(|i| format!("A=A{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut request = tonic::Request::new(resolve("ws", &names));
    let actor = "\u{1f511}".repeat(256);
    let actor = BinaryMetadataValue::from_bytes(actor.as_bytes());
    request.metadata_mut().insert_bin("x-actor-bin", actor);
    assert_refused(stranger.resolve_secrets(request).await, Code::PermissionDenied, "NOT_GRANTED");
    let lines = replica.audit();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(replica.stdout().len() < 5_000);
}

/// A page token tells an integration no name that it may not see.
#[tokio::test]
async fn a_page_token_tells_no_hidden_name() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    for i in 10..30 {
        writer.create_secret(create("ws", &format!("ACQUISITION_{i}"), "v")).await.unwrap();
    }
    let mut slack = platform.client(&replica, "slack").await;
    let mut request = list("ws");
    (request.page_size, request.show_system_managed) = (1, true);
    let page = slack.list_secrets(request).await.unwrap().into_inner();
    assert!(page.secrets.is_empty());
    assert_eq!(page.next_page_token, "");
}

/// Whoever writes to Redis, without the KMS, cannot lengthen the life of the
/// value there, nor of the next one.
#[tokio::test]
async fn a_store_writer_cannot_take_the_expiry_off() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    let mut executor = platform.client(&replica, "executor").await;
    let mut request = create("ws", "KEY", "one");
    request.expire_time = Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
    writer.create_secret(request).await.unwrap();
    alter_metadata(&platform, "KEY", |metadata| metadata.expire_time = None).await;

    let answer = executor.resolve_secrets(resolve("ws", &["KEY"])).await;
    assert_refused(answer, Code::DataLoss, "RECORD_CORRUPT");
    let mut rotation = update("ws", "KEY");
    rotation.value = Some("two".to_owned());
    let answer = writer.update_secret(rotation.clone()).await;
    assert_refused(answer, Code::DataLoss, "RECORD_CORRUPT");

    // Value and expiry together, as the error advises, mend the secret.
    rotation.expire_time = Some(prost_types::Timestamp { seconds: 4_000_000_001, nanos: 0 });
    writer.update_secret(rotation).await.unwrap();
    let answer = executor.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap().into_inner();
    assert_eq!(answer.secrets["KEY"].value, "two");
    assert_eq!(answer.secrets["KEY"].expire_time.map(|time| time.seconds), Some(4_000_000_001));
}

/// A metadata record that cannot be read hides no other from List.
#[tokio::test]
async fn a_broken_record_hides_no_other() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    for name in ["A", "B", "C"] {
        writer.create_secret(create("ws", name, "v")).await.unwrap();
    }
    let other = SecretName::parse("OTHER").unwrap();
    alter_metadata(&platform, "B", |metadata| metadata.name = other).await;
    let page = writer.list_secrets(list("ws")).await.unwrap().into_inner();
    let names: Vec<_> = page.secrets.iter().map(|secret| secret.name.as_str()).collect();
    assert_eq!(names, ["A", "C"]);
    assert!(replica.stderr().contains("metadata record corrupt"), "{}", replica.stderr());
}

/// As one who may write to Redis.
async fn alter_metadata(
    platform: &Platform,
    name: &str,
    alter: impl FnOnce(&mut workflow_secrets::domain::SecretMetadata),
) {
    let url = RedisUrl::parse(&platform.redis.url()).unwrap();
    let store = RedisStore::connect(RedisConfig::new(url)).await.unwrap();
    let (ws, name) = (WorkspaceId::parse("ws").unwrap(), SecretName::parse(name).unwrap());
    let key = Key::metadata(&name);
    let record = store.read(&ws, std::slice::from_ref(&key)).await.unwrap().remove(0).unwrap();
    let mut metadata = codec::decode_metadata(&name, &record.bytes).unwrap();
    alter(&mut metadata);
    let bytes = codec::encode_metadata(&metadata);
    let operation = Operation {
        key,
        expect: Some(Expect::Revision(record.revision)),
        write: Write::Put(Record { revision: record.revision, bytes }),
    };
    let batch = Batch { operations: vec![operation], ..Batch::default() };
    assert!(store.commit(&ws, batch).await.unwrap() == Commit::Done);
}
