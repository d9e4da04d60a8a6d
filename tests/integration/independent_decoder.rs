//! What the running service stores is what the documents say: programs of
//! another hand read its metadata and open its values.

use serde_json::{Value, json};
use workflow_secrets::grpc::proto::Secret;

use super::{
    golden::{decode, python},
    support::{
        platform::{Platform, create, update},
        raw_redis::{RawRedis, Records},
    },
};

const READER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/read_metadata.py");
const PROTO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");

/// A stored secret as it should be read.
struct Written {
    workspace: &'static str,
    secret: Secret,
    value: String,
}

fn time(time: Option<&prost_types::Timestamp>) -> Value {
    time.map_or(Value::Null, |time| json!({"seconds": time.seconds, "nanos": time.nanos}))
}

#[tokio::test]
async fn records_of_the_running_service_open_elsewhere() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut people = platform.client(&replica, "platform").await;
    let mut sheets = platform.client(&replica, "sheets").await;
    let expiry = prost_types::Timestamp { seconds: 4_102_444_800, nanos: 123_456_789 };
    let mut written = vec![];

    // Written once; with an expiry; twice; sealed again for another expiry;
    // described anew, which leaves the value as it is; an integration's.
    let value = "sk_test_\"quoted\"\nlines, Zoë, 🔑";
    let secret = people.create_secret(create("a", "ONCE", value)).await.unwrap().into_inner();
    written.push(Written { workspace: "a", secret, value: value.to_owned() });

    let mut request = create("a", "EXPIRES", &"x".repeat(65_536));
    request.expire_time = Some(expiry);
    let secret = people.create_secret(request).await.unwrap().into_inner();
    written.push(Written { workspace: "a", secret, value: "x".repeat(65_536) });

    people.create_secret(create("a", "TWICE", "old")).await.unwrap();
    let mut change = update("a", "TWICE");
    change.value = Some("new".to_owned());
    let secret = people.update_secret(change).await.unwrap().into_inner();
    written.push(Written { workspace: "a", secret, value: "new".to_owned() });

    people.create_secret(create("b", "LATER", "kept")).await.unwrap();
    let mut change = update("b", "LATER");
    change.expire_time = Some(expiry);
    let secret = people.update_secret(change).await.unwrap().into_inner();
    written.push(Written { workspace: "b", secret, value: "kept".to_owned() });

    people.create_secret(create("b", "DESCRIBED", "same")).await.unwrap();
    let mut change = update("b", "DESCRIBED");
    change.description = Some("für Zahlungen".to_owned());
    let secret = people.update_secret(change).await.unwrap().into_inner();
    written.push(Written { workspace: "b", secret, value: "same".to_owned() });

    let mut request = create("b", "OAUTH", "token");
    request.owner = Some(workflow_secrets::grpc::proto::Owner {
        integration: "google_sheets".to_owned(),
        connection_id: "conn:1".to_owned(),
    });
    let secret = sheets.create_secret(request).await.unwrap().into_inner();
    written.push(Written { workspace: "b", secret, value: "token".to_owned() });

    let mut raw = RawRedis::connect(&platform.redis);
    let stored = [("a", raw.records("a")), ("b", raw.records("b"))];
    let records = |workspace: &str| -> &Records {
        stored.iter().find(|(name, _)| *name == workspace).map(|(_, records)| records).unwrap()
    };
    let lines: Vec<_> = written
        .iter()
        .map(|w| hex::encode(&records(w.workspace)[&format!("m/{}", w.secret.name)][8..]))
        .collect();
    let (status, metadata) = python(&[READER, PROTO], lines.join("\n").as_bytes());
    assert_eq!((status, metadata.len()), (Some(0), written.len()));

    let data_keys = platform.kms.data_keys();
    assert_eq!(data_keys.len(), 2, "one a workspace, in the order of their first use");
    let mut cases = vec![];
    let mut expected = vec![];
    for (Written { workspace, secret, value }, read) in written.iter().zip(&metadata) {
        assert_eq!(read["name"], secret.name);
        let dashed = uuid::Uuid::parse_str(read["uid"].as_str().unwrap()).unwrap();
        assert_eq!(dashed.to_string(), secret.uid);
        assert_eq!(read["version"], secret.version);
        assert_eq!(read["description"], secret.description);
        assert_eq!(read["expire_time"], time(secret.expire_time.as_ref()));
        assert_eq!(read["create_time"], time(secret.create_time.as_ref()));
        assert_eq!(read["update_time"], time(secret.update_time.as_ref()));
        assert_eq!(read["created_by"], secret.created_by);
        assert_eq!(read["updated_by"], secret.updated_by);
        let owner = secret.owner.as_ref().map_or(
            Value::Null,
            |owner| json!({"integration": owner.integration, "connection_id": owner.connection_id}),
        );
        assert_eq!(read["owner"], owner);

        let record = &records(workspace)[&format!("v/{}", secret.name)];
        let (revision, sealed) = record.split_first_chunk().unwrap();
        assert_eq!(read["value_revision"], u64::from_be_bytes(*revision));
        cases.push(json!({
            "data_key": hex::encode(data_keys[usize::from(*workspace == "b")]),
            "environment": "test",
            "workspace": workspace,
            "name": secret.name,
            "uid": read["uid"],
            "revision": read["value_revision"],
            "record": hex::encode(sealed),
        }));
        expected.push(json!({
            "version": secret.version,
            "expire_time": time(secret.expire_time.as_ref()),
            "value": value,
        }));
    }
    assert_eq!(decode(&cases), (Some(0), expected));

    // The other workspace's data key opens none of them.
    for case in &mut cases {
        let other = data_keys[usize::from(case["workspace"] == "a")];
        case["data_key"] = hex::encode(other).into();
    }
    let (status, results) = decode(&cases);
    assert_eq!(status, Some(1));
    assert!(results.iter().all(|result| result["error"] == "another data key"), "{results:?}");
}
