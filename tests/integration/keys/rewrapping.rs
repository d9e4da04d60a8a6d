//! RewrapDataKeys.

use std::time::Duration;

use tonic::Code;
use workflow_secrets::{
    domain::WorkspaceId,
    grpc::proto::{RewrapDataKeysRequest, RewrapDataKeysResponse, RotateDataKeyRequest},
    kms::KmsError,
    service::{Error, RewrapDataKeys},
    store::{Batch, Commit, Key, Operation, Record, Write},
};

use super::{Rig, engines, last, rewrap};
use crate::support::{
    kms_endpoint::KeyState,
    platform::{KMS_ALIAS, KeyClient, Platform, assert_refused, create, reason, resolve, value},
    service::caller,
};

/// The report.
async fn rewrapped(
    client: &mut KeyClient,
    request: RewrapDataKeysRequest,
) -> Result<RewrapDataKeysResponse, tonic::Status> {
    let mut steps = client.rewrap_data_keys(request).await?.into_inner();
    let mut last = RewrapDataKeysResponse::default();
    while let Some(step) = steps.message().await? {
        assert!(!last.done, "nothing comes after the report");
        last = step;
    }
    assert!(last.done);
    Ok(last)
}

#[tokio::test]
async fn after_it_the_old_kms_key_is_needed_no_more() {
    let mut platform = Platform::start().await;
    let before = platform.replica().await;
    let mut writer = platform.client(&before, "platform").await;
    let mut operator = platform.key_client(&before, "operator").await;
    let workspaces: Vec<_> = (0..5).map(|number| format!("ws_{number}")).collect();
    for workspace in &workspaces {
        writer.create_secret(create(workspace, "KEY", "value")).await.unwrap();
        let workspace = workspace.clone();
        let request = RotateDataKeyRequest { workspace, data_key_id: String::new() };
        operator.rotate_data_key(request).await.unwrap();
    }
    let (old, new) = (platform.kms_key.clone(), platform.kms.create_key());
    platform.kms.set_alias(KMS_ALIAS, &new);
    platform.kms_key = new.clone();
    drop(before);
    let after = platform.replica_with(&["--kms-previous-key", &old]).await;
    let mut operator = platform.key_client(&after, "operator").await;

    // One workspace, with both of its keys.
    let one = RewrapDataKeysRequest { workspace: "ws_0".into(), kms_key: KMS_ALIAS.into() };
    let report = rewrapped(&mut operator, one).await.unwrap();
    assert_eq!((report.rewrapped, report.unchanged, report.failed), (2, 2, 0));
    assert_eq!((report.kms_key.as_str(), report.pass), (new.as_str(), 2));
    let calls = platform.kms.rewraps();
    let report = rewrapped(&mut operator, Default::default()).await.unwrap();
    assert_eq!((report.rewrapped, report.unchanged, report.workspaces), (8, 10, 5));
    assert!(report.failures.is_empty());
    assert!(platform.kms.rewraps() - calls <= 10, "what is known to be done is passed over");

    // A replica that knows nothing of the old key, which is about to go.
    platform.kms.set_state(&old, KeyState::PendingDeletion);
    let fresh = platform.replica().await;
    let mut reader = platform.client(&fresh, "executor").await;
    for workspace in &workspaces {
        let answer = reader.resolve_secrets(resolve(workspace, &["KEY"])).await.unwrap();
        assert_eq!(value(&answer.into_inner(), "KEY"), "value");
    }
    let lines = after.audit();
    let outcomes: Vec<_> = lines
        .iter()
        .filter(|line| line["action"] == "rewrap_data_keys")
        .map(|line| (line["workspace"].as_str(), line["outcome"].as_str().unwrap()))
        .collect();
    let one = Some("ws_0");
    assert_eq!(outcomes, [(one, "started"), (one, "ok"), (None, "started"), (None, "ok")]);
}

#[tokio::test]
async fn who_may_do_it_and_with_which_key() {
    let platform = Platform::start().await;
    let policy = platform.file("policy.toml");
    let mut text = std::fs::read_to_string(&policy).unwrap();
    text.push_str("\n[[grant]]\ncaller = \"spiffe://test/stranger\"\nrole = \"operator\"\n");
    text.push_str("workspaces = [\"ws_*\", \"w\"]\n");
    std::fs::write(&policy, text).unwrap();
    let replica = platform.replica().await;
    let request = |workspace: &str, kms_key: &str| RewrapDataKeysRequest {
        workspace: workspace.into(),
        kms_key: kms_key.into(),
    };
    for (caller, workspace) in [("platform", ""), ("platform", "w"), ("stranger", "other")] {
        let mut client = platform.key_client(&replica, caller).await;
        let outcome = client.rewrap_data_keys(request(workspace, "")).await;
        assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
    }
    let mut some = platform.key_client(&replica, "stranger").await;
    rewrapped(&mut some, request("ws_1", "")).await.unwrap();
    // All workspaces are more than those.
    let outcome = some.rewrap_data_keys(request("", "")).await;
    assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
    let mut all = platform.key_client(&replica, "operator").await;
    rewrapped(&mut all, request("", "")).await.unwrap();
    let outcome = all.rewrap_data_keys(request("", "alias/other")).await;
    assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
    let outcome = all.rewrap_data_keys(request("w s", "")).await;
    assert_refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
}

#[tokio::test]
async fn one_that_fails_does_not_stop_the_others_and_an_outage_stops_it() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut writer = platform.client(&replica, "platform").await;
    for workspace in ["ws_0", "ws_1", "ws_2"] {
        writer.create_secret(create(workspace, "KEY", "value")).await.unwrap();
    }
    let records = |workspace: &str| format!("workflow-secrets:{{{workspace}}}:records");
    // The key of one workspace in another.
    let script = "redis.call('HSET', KEYS[1], 'k/active', redis.call('HGET', KEYS[2], 'k/active'))";
    let (to, from) = (records("ws_1"), records("ws_2"));
    platform.redis.cli(&["EVAL", script, "2", &to, &from]);
    let new = platform.kms.create_key();
    platform.kms.set_alias("alias/new", &new);
    let flags = ["--kms-key", "alias/new", "--kms-previous-key", platform.kms_key.as_str()];
    let replica = platform.replica_with(&flags).await;
    let mut operator = platform.key_client(&replica, "operator").await;
    let report = rewrapped(&mut operator, Default::default()).await.unwrap();
    assert_eq!((report.rewrapped, report.unchanged, report.failed), (2, 2, 1));
    let [failure] = report.failures.as_slice() else { panic!("{report:?}") };
    assert_eq!((failure.workspace.as_str(), failure.reason.as_str()), ("ws_1", "RECORD_CORRUPT"));

    writer.create_secret(create("ws_3", "KEY", "value")).await.unwrap();
    platform.kms.fault(crate::support::kms_endpoint::Fault::Throttle);
    let status = rewrapped(&mut operator, Default::default()).await.unwrap_err();
    assert_eq!(reason(&status), (Code::Unavailable, "KMS_UNAVAILABLE".to_owned()));
    platform.kms.heal();
    let report = rewrapped(&mut operator, Default::default()).await.unwrap();
    assert_eq!((report.rewrapped, report.unchanged, report.failed), (1, 3, 1));
}

#[tokio::test]
async fn what_does_not_unwrap_to_the_same_key_takes_no_place() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        super::create(&rig.secrets, "KEY", "value").await.unwrap();
        let before = rig.store.read(&super::ws(), &[Key::active_data_key()]).await.unwrap();
        rig.kms.rename("new");
        rig.kms.swap(true);
        let report = rewrap(&rig.secrets).await.unwrap();
        assert_eq!((report.rewrapped, report.failed), (0, 1));
        assert_eq!(report.failures[0].reason, "RECORD_CORRUPT");
        rig.kms.swap(false);
        // One that cannot be unwrapped afterwards either.
        rig.kms.fail_decrypts_after(2, KmsError::WrongCiphertext("lost"));
        let report = rewrap(&rig.secrets).await.unwrap();
        assert_eq!((report.rewrapped, report.failed), (0, 1));
        rig.kms.fail_decrypts(None);
        let after = rig.store.read(&super::ws(), &[Key::active_data_key()]).await.unwrap();
        assert!(before == after);
        assert_eq!(rewrap(&rig.secrets).await.unwrap().rewrapped, 1);
        assert_eq!(super::read(&rig.secrets, "KEY", None).await.as_deref(), Ok("value"));
        // There is nothing to do in a workspace that was destroyed, or is none.
        let workspace = Some(WorkspaceId::parse("nowhere").unwrap());
        let request = RewrapDataKeys { workspace, kms_key: Some("alias/fake".into()) };
        let report = last(rig.secrets.rewrap_data_keys(&caller(), request).await).await.unwrap();
        assert_eq!((report.workspaces, report.unchanged), (1, 0));
        let other = RewrapDataKeys { workspace: None, kms_key: Some("fake".into()) };
        let refused = rig.secrets.rewrap_data_keys(&caller(), other).await.err();
        assert!(matches!(refused, Some(Error::Invalid(_))), "{refused:?}");
    }
}

/// What a rotation does while the only key of a workspace is wrapped anew.
#[tokio::test]
async fn a_key_that_is_retired_meanwhile_is_not_passed_over() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        super::create(&rig.secrets, "KEY", "value").await.unwrap();
        let active = Key::active_data_key();
        let first =
            rig.store.read(&super::ws(), std::slice::from_ref(&active)).await.unwrap().remove(0);
        rig.kms.rename("new");
        let old = rig.rotate().await.keys.remove(1);
        let retired = Key::data_key(old.wrapped.id);
        let keys = [active.clone(), retired.clone()];
        let after = rig.store.read(&super::ws(), &keys).await.unwrap();
        put(&rig, &active, first).await;
        put(&rig, &retired, None).await;

        let before = rig.kms.decrypts();
        rig.kms.hold(true);
        let secrets = rig.secrets.clone();
        let rewrapping = tokio::spawn(async move { rewrap(&secrets).await });
        while rig.kms.decrypts() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for (key, record) in keys.iter().zip(after) {
            put(&rig, key, record).await;
        }
        rig.kms.hold(false);
        let report = rewrapping.await.unwrap().unwrap();
        assert_eq!((report.rewrapped, report.unchanged, report.failed), (1, 2, 0));
        let keys = rig.keys().await.keys;
        assert!(keys.iter().all(|key| key.wrapped.kms_key_id == "new"));
    }
}

async fn put(rig: &Rig, key: &Key, record: Option<Record>) {
    let write = record.map_or(Write::Delete, Write::Put);
    let operations = vec![Operation { key: key.clone(), expect: None, write }];
    let batch = Batch { operations, ..Batch::default() };
    assert!(rig.store.commit(&super::ws(), batch).await.unwrap() == Commit::Done);
}
