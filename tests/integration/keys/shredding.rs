//! ShredWorkspace.

use std::{io, sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tonic::{Code, Status};
use workflow_secrets::{
    domain::{Plaintext, SecretName, WorkspaceId},
    grpc::proto::{
        DescribeWorkspaceKeysRequest, ListAuditEventsRequest, ListSecretUsageRequest,
        RotateDataKeyRequest, ShredWorkspaceRequest, ShredWorkspaceResponse, UndeleteSecretRequest,
    },
    service::{CreateSecret, Secrets, ShredWorkspace, audit::AuditSink},
};

use crate::support::{
    fake_kms::FakeKms,
    manual_clock::ManualClock,
    memory_store::MemoryStore,
    platform::{
        Client, KeyClient, Platform, assert_refused, create, delete, get, list, reason, resolve,
        update, with,
    },
    service,
};

fn shred(workspace: &str) -> ShredWorkspaceRequest {
    ShredWorkspaceRequest { workspace: workspace.to_owned(), confirm: workspace.to_owned() }
}

async fn shredded(client: &mut KeyClient, workspace: &str) -> ShredWorkspaceResponse {
    client.shred_workspace(shred(workspace)).await.unwrap().into_inner()
}

/// Every call in the workspace fails, and so will a new one.
async fn assert_gone(platform: &Client, executor: &Client, operator: &KeyClient) {
    let (mut platform, mut executor) = (platform.clone(), executor.clone());
    let mut operator = operator.clone();
    let gone = |status: Option<Status>| {
        let status = status.expect("an error");
        let expected = (Code::FailedPrecondition, "WORKSPACE_SHREDDED".to_owned());
        assert_eq!(reason(&status), expected, "{status:?}");
    };
    gone(executor.resolve_secrets(resolve("ws", &["KEY"])).await.err());
    gone(platform.create_secret(create("ws", "KEY", "back")).await.err());
    let retried = with(create("ws", "KEY", "value"), |r| r.request_id = "r-1".to_owned());
    gone(platform.create_secret(retried).await.err());
    gone(
        platform
            .update_secret(with(update("ws", "KEY"), |r| r.value = Some("x".into())))
            .await
            .err(),
    );
    gone(platform.delete_secret(delete("ws", "KEY")).await.err());
    gone(platform.get_secret(get("ws", "KEY")).await.err());
    gone(platform.list_secrets(list("ws")).await.err());
    let (workspace, name) = ("ws".to_owned(), "KEY".to_owned());
    let request = UndeleteSecretRequest { workspace, name, ..Default::default() };
    gone(platform.undelete_secret(request).await.err());
    let request = ListAuditEventsRequest { workspace: "ws".into(), ..Default::default() };
    gone(platform.list_audit_events(request).await.err());
    let request = ListSecretUsageRequest { workspace: "ws".into(), ..Default::default() };
    gone(platform.list_secret_usage(request).await.err());
    let request = RotateDataKeyRequest { workspace: "ws".into(), ..Default::default() };
    gone(operator.rotate_data_key(request).await.err());
    let request = DescribeWorkspaceKeysRequest { workspace: "ws".into() };
    gone(operator.describe_workspace_keys(request).await.err());
}

#[tokio::test]
async fn a_shredded_workspace_is_gone_on_every_replica_and_stays_so() {
    let platform = Platform::start().await;
    let (mut one, two) = (platform.replica().await, platform.replica().await);
    let mut writer = platform.client(&two, "platform").await;
    let mut executor = platform.client(&two, "executor").await;
    let mut operator = platform.key_client(&one, "operator").await;
    let first = with(create("ws", "KEY", "value-of-ws"), |r| {
        r.description = "needle-in-a-description".to_owned();
        r.request_id = "r-1".to_owned();
    });
    writer.create_secret(first).await.unwrap();
    writer.create_secret(create("ws2", "KEY", "value")).await.unwrap();
    executor.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();

    // Named once only, nothing happens.
    for confirm in ["", "WS", "ws2"] {
        let request = ShredWorkspaceRequest { confirm: confirm.into(), ..shred("ws") };
        let outcome = operator.shred_workspace(request).await;
        assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
    }
    for caller in ["executor", "platform", "sheets", "stranger"] {
        let mut client = platform.key_client(&one, caller).await;
        let outcome = client.shred_workspace(shred("ws")).await;
        assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
    }
    executor.resolve_secrets(resolve("ws", &["KEY"])).await.unwrap();

    let done = shredded(&mut operator, "ws").await;
    // Metadata, value, trail entry and data key.
    assert_eq!((done.destroyed_records, done.workspace.as_str()), (4, "ws"));
    assert_eq!(done.shredded_by, "spiffe://test/operator");
    let here = platform.client(&one, "platform").await;
    let reader = platform.client(&one, "executor").await;
    assert_gone(&here, &reader, &operator).await;
    let there = platform.key_client(&two, "operator").await;
    assert_gone(&writer, &executor, &there).await;

    // Nothing is left in Redis but the tombstone; neighbours are.
    let keys = platform.redis.cli(&["KEYS", "workflow-secrets:{ws}:*"]);
    let mut keys: Vec<_> = keys.lines().collect();
    keys.sort_unstable();
    let left = ["records", "index", "revision"].map(|key| format!("workflow-secrets:{{ws}}:{key}"));
    let mut left: Vec<_> = left.iter().map(String::as_str).collect();
    left.sort_unstable();
    assert_eq!(keys, left);
    assert_eq!(platform.redis.cli(&["HKEYS", "workflow-secrets:{ws}:records"]), "t/shredded");
    executor.resolve_secrets(resolve("ws2", &["KEY"])).await.unwrap();

    // Repeated, elsewhere and after a crash, it tells of the first.
    one.kill9();
    let mut operator = platform.key_client(&two, "operator").await;
    let again = shredded(&mut operator, "ws").await;
    assert_eq!(again, ShredWorkspaceResponse { destroyed_records: 0, ..done });
    let lines = two.audit();
    let line = lines.iter().rfind(|line| line["action"] == "shred").unwrap();
    assert_eq!((&line["workspace"], &line["outcome"]), (&"ws".into(), &"ok".into()));
}

/// Creates, updates and resolves on two replicas while the workspace goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_races_with_a_shredding_brings_anything_back() {
    let platform = Platform::start().await;
    let replicas = [platform.replica().await, platform.replica().await];
    let mut operator = platform.key_client(&replicas[0], "operator").await;
    for round in 0..3 {
        let workspace = format!("ws_{round}");
        let mut racers = JoinSet::new();
        for racer in 0..12 {
            let mut writer = platform.client(&replicas[racer % 2], "platform").await;
            let mut reader = platform.client(&replicas[racer % 2], "executor").await;
            let workspace = workspace.clone();
            racers.spawn(async move {
                let mut gone = 0;
                for number in 0_usize.. {
                    let name = format!("N{racer}_{}", number / 2);
                    let outcome = match number % 2 {
                        0 => writer.create_secret(create(&workspace, &name, "x")).await.map(|_| ()),
                        _ => {
                            let request = resolve(&workspace, &[&name]);
                            reader.resolve_secrets(request).await.map(|_| ())
                        }
                    };
                    match outcome.map_err(|status| reason(&status).1) {
                        Ok(()) => assert_eq!(gone, 0, "back from the dead"),
                        Err(why) if why == "WORKSPACE_SHREDDED" => gone += 1,
                        Err(why) => assert_eq!((why.as_str(), gone), ("CONCURRENT_UPDATE", 0)),
                    }
                    if gone == 10 {
                        break;
                    }
                }
            });
        }
        // The first round goes while the first key is being made.
        let records = format!("workflow-secrets:{{{workspace}}}:records");
        let made = || platform.redis.cli(&["HLEN", &records]).parse::<u64>().unwrap();
        while made() < 50 * round {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shredded(&mut operator, &workspace).await;
        racers.join_all().await;
        assert_eq!(platform.redis.cli(&["HKEYS", &records]), "t/shredded");
    }
}

fn workspace(text: &str) -> WorkspaceId {
    WorkspaceId::parse(text).unwrap()
}

async fn store(secrets: &Arc<Secrets>, to: &str) {
    let request = CreateSecret {
        workspace: workspace(to),
        name: SecretName::parse("KEY").unwrap(),
        value: Plaintext::parse("value".to_owned()).ok().unwrap(),
        description: Default::default(),
        owner: None,
        expiry: None,
        request_id: None,
        validate_only: false,
    };
    secrets.create(&service::caller(), request).await.unwrap();
}

/// The keys are gone at once where the call was made, and elsewhere within the
/// bound that is documented.
#[tokio::test]
async fn cached_keys_of_a_shredded_workspace_are_overwritten_everywhere() {
    const PASS: Duration = Duration::from_secs(30);
    let (shared, kms) = (Arc::new(MemoryStore::default()), Arc::new(FakeKms::default()));
    let clock = Arc::new(ManualClock::default());
    let replica = || {
        let sink = AuditSink::Writer(Box::new(io::sink()));
        Arc::new(service::secrets(shared.clone(), kms.clone(), clock.clone(), sink))
    };
    let (one, two) = (replica(), replica());
    for number in 0..20 {
        store(&two, &format!("ws_{number}")).await;
    }
    store(&one, "ws_20").await;
    for number in [3, 20] {
        let request = ShredWorkspace { workspace: workspace(&format!("ws_{number}")) };
        one.shred(&service::caller(), request).await.unwrap();
    }
    assert!(one.workspaces_with_keys().await.is_empty(), "at once");
    assert_eq!(two.workspaces_with_keys().await.len(), 20);

    // A store that does not answer is asked again. Nothing waits for real time.
    tokio::time::pause();
    shared.fail_reads(Some(workflow_secrets::store::StoreError::Unavailable("down")));
    let start = tokio::time::Instant::now();
    two.forget_shredded(PASS).await;
    assert_eq!(two.workspaces_with_keys().await.len(), 20);
    shared.fail_reads(None);
    two.forget_shredded(PASS).await;
    assert!(start.elapsed() <= 2 * PASS + Duration::from_secs(1), "{:?}", start.elapsed());
    let left = two.workspaces_with_keys().await;
    assert!(left.len() == 19 && !left.contains(&workspace("ws_3")));
    // With nothing to look at, it does not spin.
    one.forget_shredded(PASS).await;
    assert!(start.elapsed() >= 3 * PASS - Duration::from_secs(1));
}
