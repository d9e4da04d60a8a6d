//! `keys`.

use super::{Rig, assert_told, told};
use crate::support::{
    kms_endpoint::{Fault, KeyState},
    platform::{KMS_ALIAS, create, update, with},
    program,
    redis_server::until,
};

async fn fill(rig: &Rig, workspace: &str, secrets: usize) {
    let mut client = rig.platform.client(&rig.replica, "platform").await;
    for i in 0..secrets {
        client.create_secret(create(workspace, &format!("K{i}"), "value")).await.unwrap();
    }
}

#[tokio::test]
async fn rotate_reencrypt_and_describe() {
    let rig = Rig::start().await;
    let ws = ["--workspace", "ws"];
    let keys =
        async |command: &str, more: &[&str]| rig.keys(&[&[command], &ws[..], more].concat()).await;
    let outcome = keys("describe", &[]).await;
    assert_eq!(told(&outcome), (Some(0), "workspace ws: data keys: 0\n"));
    assert_told(&keys("rotate", &[]).await, 1, &["NO_DATA_KEY: "]);
    fill(&rig, "ws", 30).await;
    let outcome = keys("describe", &[]).await;
    let line = outcome.stdout.lines().nth(1).unwrap();
    assert!(line.starts_with("active   ") && line.ends_with(&rig.platform.kms_key), "{line}");
    let first = line.split_whitespace().nth(1).unwrap().to_owned();

    let outcome = keys("rotate", &["--actor", "zoe"]).await;
    assert_told(&outcome, 0, &["data keys: 2\n", &format!("retired  {first}  made ")]);
    // Named, it is not replaced twice.
    let outcome = keys("rotate", &["--data-key", &first]).await;
    assert_told(&outcome, 0, &["data keys: 2\n"]);
    let mut client = rig.platform.client(&rig.replica, "platform").await;
    let change = with(update("ws", "K0"), |change| change.value = Some("newer".into()));
    client.update_secret(change).await.unwrap();

    let outcome = keys("reencrypt", &[]).await;
    assert_told(&outcome, 0, &["values: 30 moved, 31 opened, 0 failed\n"]);
    let kept = format!("retired data key {first}: kept for repeated requests: a run after 20");
    assert!(outcome.stdout.contains(&kept), "{}", outcome.stdout);
    let (pass_1, pass_2) = outcome.stderr.split_once("pass 2: ").expect(&outcome.stderr);
    assert!(pass_1.starts_with("pass 1: "), "{pass_1}");
    assert!(pass_2.contains(" of 31, changed 30, failed 0\n"), "{pass_2}");

    let outcome = keys("reencrypt", &["--forget-requests"]).await;
    assert_told(&outcome, 0, &["values: 0 moved, 31 opened", &format!("{first}: destroyed\n")]);
    assert_told(&keys("describe", &[]).await, 0, &["data keys: 1\n"]);
    let audit = rig.replica.audit();
    let by: Vec<_> = audit.iter().filter(|line| line["actor"] == "zoe").collect();
    assert!(!by.is_empty() && by.iter().any(|line| line["action"] == "rotate_data_key"));

    for (caller, command) in [("platform", "describe"), ("executor", "reencrypt")] {
        let outcome = rig.keys_as(caller, &[&[command], &ws[..]].concat()).await;
        assert_told(&outcome, 1, &["NOT_GRANTED: "]);
    }
}

#[tokio::test]
async fn what_does_not_open_is_named() {
    let rig = Rig::start().await;
    fill(&rig, "ws", 3).await;
    let damage = "local v = redis.call('HGET', KEYS[1], 'v/K1') \
                  local last = string.char((string.byte(v, -1) + 1) % 256) \
                  redis.call('HSET', KEYS[1], 'v/K1', string.sub(v, 1, -2) .. last)";
    rig.platform.redis.cli(&["EVAL", damage, "1", "workflow-secrets:{ws}:records"]);
    assert_told(&rig.keys(&["rotate", "--workspace", "ws"]).await, 0, &["data keys: 2\n"]);
    let outcome = rig.keys(&["reencrypt", "--workspace", "ws"]).await;
    assert_told(
        &outcome,
        1,
        &[
            "failed: secret K1 version 1: RECORD_CORRUPT\n",
            "kept: what cannot be opened may need it\n",
            "values: 2 moved, 2 opened, 1 failed\n",
            "1 values do not open",
        ],
    );
}

#[tokio::test]
async fn rewrap_leaves_an_old_kms_key_behind() {
    let mut rig = Rig::start().await;
    for workspace in ["ws", "w1", "w2"] {
        fill(&rig, workspace, 1).await;
    }
    let (old, new) = (rig.platform.kms_key.clone(), rig.platform.kms.create_key());
    rig.platform.kms.set_alias(KMS_ALIAS, &new);
    rig.replica = rig.platform.replica_with(&["--kms-previous-key", &old]).await;

    let outcome = rig.keys(&["rewrap", "--all", "--kms-key", "alias/other"]).await;
    assert_told(&outcome, 1, &["INVALID_FIELD: "]);
    let outcome = rig.keys(&["rewrap", "--workspace", "ws", "--kms-key", KMS_ALIAS]).await;
    let end = format!("; workspaces: 1; KMS key: {new}\n");
    assert_told(&outcome, 0, &["1 wrapped anew, 1 unchanged, 0 failed", &end, "pass 1: "]);

    // An outage is waited out, and what is done stays done.
    rig.platform.kms.fault(Fault::Throttle);
    let arguments = ["keys", "rewrap", "--all"];
    let mut command = super::cli(&rig.platform, rig.replica.address, "operator", &arguments);
    let piped = std::process::Stdio::piped;
    let child = command.stdout(piped()).stderr(piped()).spawn().unwrap();
    until(|| rig.replica.stdout().contains("KMS_UNAVAILABLE")).await;
    rig.platform.kms.heal();
    let outcome = program::outcome(child, super::LONG).await;
    assert_told(&outcome, 0, &["2 wrapped anew, 3 unchanged, 0 failed; workspaces: 3", "pass 2: "]);
    let again = rig.keys(&["rewrap", "--all"]).await;
    assert_told(&again, 0, &["0 wrapped anew, 3 unchanged, 0 failed"]);

    // Nothing needs the old one any more.
    rig.platform.kms.set_state(&old, KeyState::PendingDeletion);
    rig.replica = rig.platform.replica().await;
    let described = rig.keys(&["describe", "--workspace", "w2"]).await;
    assert_told(&described, 0, &[&format!("KMS key {new}\n")]);
    let mut reader = rig.platform.client(&rig.replica, "executor").await;
    reader.resolve_secrets(crate::support::platform::resolve("w1", &["K0"])).await.unwrap();
}
