//! DescribeWorkspaceKeys and RotateDataKey, over two replicas.

use tonic::Code;
use workflow_secrets::grpc::proto::{
    DataKeyState, DescribeWorkspaceKeysRequest, ListAuditEventsRequest, RotateDataKeyRequest,
    WorkspaceKeys,
};

use crate::support::platform::{
    KeyClient, Platform, assert_refused, assert_unavailable, create, resolve, update, value, with,
};

fn describe(workspace: &str) -> DescribeWorkspaceKeysRequest {
    DescribeWorkspaceKeysRequest { workspace: workspace.to_owned() }
}

fn rotate(workspace: &str, data_key_id: &str) -> RotateDataKeyRequest {
    RotateDataKeyRequest { workspace: workspace.to_owned(), data_key_id: data_key_id.to_owned() }
}

async fn described(client: &mut KeyClient) -> WorkspaceKeys {
    client.describe_workspace_keys(describe("ws")).await.unwrap().into_inner()
}

fn ids(keys: &WorkspaceKeys) -> Vec<String> {
    keys.keys.iter().map(|key| key.data_key_id.clone()).collect()
}

#[tokio::test]
async fn new_writes_get_the_new_key_on_every_replica_and_all_stays_readable() {
    let platform = Platform::start().await;
    let (one, two) = (platform.replica().await, platform.replica().await);
    let mut writers =
        [platform.client(&one, "platform").await, platform.client(&two, "platform").await];
    let mut readers =
        [platform.client(&one, "executor").await, platform.client(&two, "executor").await];
    let mut operator = platform.key_client(&one, "operator").await;

    assert!(described(&mut operator).await.keys.is_empty());
    let outcome = operator.rotate_data_key(rotate("ws", "")).await;
    assert_refused(outcome, Code::NotFound, "NO_DATA_KEY");
    for (number, writer) in writers.iter_mut().enumerate() {
        let request = create("ws", &format!("OLD_{number}"), "value-old");
        writer.create_secret(request).await.unwrap();
    }
    let first = described(&mut operator).await;
    let [key] = first.keys.as_slice() else { panic!("{first:?}") };
    assert_eq!((key.state(), key.retire_time), (DataKeyState::Active, None));
    assert_eq!(key.kms_key, platform.kms_key);

    let rotated = operator.rotate_data_key(rotate("ws", "")).await.unwrap().into_inner();
    let [new, old] = rotated.keys.as_slice() else { panic!("{rotated:?}") };
    assert_eq!((new.state(), old.state()), (DataKeyState::Active, DataKeyState::Retired));
    assert_eq!(old.data_key_id, key.data_key_id);
    assert!(old.retire_time.is_some() && new.create_time != old.create_time);
    assert_eq!(described(&mut operator).await, rotated);
    let trail = ListAuditEventsRequest { workspace: "ws".to_owned(), ..Default::default() };
    let events = writers[1].list_audit_events(trail).await.unwrap().into_inner().events;
    let told: Vec<_> = events.iter().map(|one| (&*one.action, &*one.caller, &*one.name)).collect();
    assert_eq!(told[0], ("rotate_data_key", "spiffe://test/operator", ""));
    assert_eq!((told.len(), told[1].0), (3, "create"));

    // Both replicas seal with the new key at once; the data in Redis tells.
    for (number, writer) in writers.iter_mut().enumerate() {
        let request = create("ws", &format!("NEW_{number}"), "value-new");
        writer.create_secret(request).await.unwrap();
    }
    let hex = |id: &str| id.replace('-', "");
    for (name, id) in [
        ("OLD_0", &old.data_key_id),
        ("OLD_1", &old.data_key_id),
        ("NEW_0", &new.data_key_id),
        ("NEW_1", &new.data_key_id),
    ] {
        assert_eq!(sealing_key(&platform, name), hex(id), "{name}");
    }
    let names = ["OLD_0", "OLD_1", "NEW_0", "NEW_1"];
    for reader in &mut readers {
        let answer = reader.resolve_secrets(resolve("ws", &names)).await.unwrap().into_inner();
        assert_eq!(value(&answer, "OLD_1") + &value(&answer, "NEW_0"), "value-oldvalue-new");
    }

    // Repeated with the id it had seen, nothing is done.
    let again = operator.rotate_data_key(rotate("ws", &old.data_key_id)).await.unwrap();
    assert_eq!(again.into_inner(), rotated);
    let third = operator.rotate_data_key(rotate("ws", &new.data_key_id)).await.unwrap();
    let third = ids(&third.into_inner());
    assert_eq!(third[1..], ids(&rotated));

    // What was remembered under the first key is still known.
    let remembered = || with(create("ws", "IDEMPOTENT", "x"), |r| r.request_id = "r1".to_owned());
    let made = writers[0].create_secret(remembered()).await.unwrap().into_inner();
    operator.rotate_data_key(rotate("ws", "")).await.unwrap();
    let replayed = writers[1].create_secret(remembered()).await.unwrap().into_inner();
    assert_eq!(replayed, made);
    let change = with(update("ws", "OLD_0"), |r| {
        r.expire_time = Some(prost_types::Timestamp { seconds: 4_000_000_000, nanos: 0 });
    });
    writers[0].update_secret(change).await.unwrap();
    let answer = readers[1].resolve_secrets(resolve("ws", &["OLD_0"])).await.unwrap().into_inner();
    assert_eq!(value(&answer, "OLD_0"), "value-old");

    let lines = one.audit();
    let line = lines.iter().rfind(|line| line["action"] == "rotate_data_key").unwrap();
    assert_eq!(line["caller"], "spiffe://test/operator");
    assert_eq!((&line["workspace"], &line["outcome"]), (&"ws".into(), &"ok".into()));
}

/// The data key in the header of a sealed value, in hex.
fn sealing_key(platform: &Platform, name: &str) -> String {
    let records = "workflow-secrets:{ws}:records";
    let script = "local r = redis.call('HGET', KEYS[1], ARGV[1]) \
                  return (string.gsub(string.sub(r, 15, 30), '.', function(c) \
                  return string.format('%02x', string.byte(c)) end))";
    platform.redis.cli(&["EVAL", script, "1", records, &format!("v/{name}")])
}

#[tokio::test]
async fn only_operators_administer_keys() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    for caller in ["executor", "platform", "sheets", "stranger"] {
        let mut client = platform.key_client(&replica, caller).await;
        let outcome = client.describe_workspace_keys(describe("ws")).await;
        assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
        let outcome = client.rotate_data_key(rotate("ws", "")).await;
        assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
    }
    let mut operator = platform.key_client(&replica, "operator").await;
    let outcome = operator.rotate_data_key(rotate("w s", "x")).await;
    assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
    let outcomes: Vec<_> = replica.audit().iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes.len(), 9);
    assert!(outcomes[..8].iter().all(|outcome| outcome == "NOT_GRANTED"));
}

#[tokio::test]
async fn a_rotation_without_the_kms_changes_nothing() {
    let mut platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut operator = platform.key_client(&replica, "operator").await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    let before = described(&mut operator).await;
    platform.kms.stop().await;
    let outcome = operator.rotate_data_key(rotate("ws", "")).await;
    assert_unavailable(outcome, "KMS_UNAVAILABLE");
    assert_eq!(described(&mut operator).await, before);
    // The active key goes on.
    writer.create_secret(create("ws", "KEY_2", "value")).await.unwrap();
}

#[tokio::test]
async fn the_number_of_keys_is_bounded() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut operator = platform.key_client(&replica, "operator").await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value")).await.unwrap();
    for _ in 1..100 {
        operator.rotate_data_key(rotate("ws", "")).await.unwrap();
    }
    let outcome = operator.rotate_data_key(rotate("ws", "")).await;
    assert_refused(outcome, Code::ResourceExhausted, "TOO_MANY_DATA_KEYS");
    assert_eq!(described(&mut operator).await.keys.len(), 100);
}
