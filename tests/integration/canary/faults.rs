//! Calls that fail because something below them does.

use std::time::Duration;

use tonic::{
    Code::{DataLoss, FailedPrecondition, ResourceExhausted, Unavailable},
    Request,
};

use super::{CANARIES, Stage, documents::failing};
use crate::support::{
    kms_endpoint::{Fault, KeyState},
    platform::{Client, create, get, list, resolve, update},
    raw_redis::{RawRedis, hash},
    redis_server::until,
};

pub(super) async fn provoke(stage: &mut Stage) {
    corrupt_records(stage).await;
    broken_kms(stage).await;
    given_up(stage).await;
    broken_audit(stage).await;
    broken_redis(stage).await;
}

/// Waits for a call to go through, as it does soon after a fault has passed.
async fn recovered(people: &mut Client, workspace: &str) {
    for _ in 0..200 {
        if people.list_secrets(list(workspace)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("does not recover");
}

async fn corrupt_records(stage: &mut Stage) {
    let (mut people, mut reader) = (stage.client("platform").await, stage.client("executor").await);
    let mut raw = RawRedis::connect(&stage.platform.redis);
    for (i, canary) in CANARIES.into_iter().enumerate() {
        let workspace = format!("corrupt{i}");
        let mut request = create(&workspace, "KEY", canary);
        request.request_id = "once".to_owned();
        stage.told.keep(people.create_secret(request.clone()).await).unwrap();
        let mut again = update(&workspace, "KEY");
        again.value = Some(canary.to_owned());
        let mut later = update(&workspace, "KEY");
        later.expire_time = Some(prost_types::Timestamp { seconds: 4_102_444_800, nanos: 0 });
        let records = raw.records(&workspace);

        let mut sealed = records["v/KEY"].clone();
        *sealed.last_mut().unwrap() ^= 1;
        raw.set(&workspace, "v/KEY", &sealed);
        let refused = reader.resolve_secrets(resolve(&workspace, &["KEY"])).await;
        stage.told.refused(refused, DataLoss, "RECORD_CORRUPT");
        let refused = people.update_secret(later).await;
        stage.told.refused(refused, DataLoss, "RECORD_CORRUPT");
        let clients = [&mut people, &mut reader];
        failing(&mut stage.told, clients, &workspace, canary, DataLoss, "RECORD_CORRUPT").await;

        raw.set(&workspace, "m/KEY", b"revision and garbage");
        let refused = people.get_secret(get(&workspace, "KEY")).await;
        stage.told.refused(refused, DataLoss, "RECORD_CORRUPT");
        let listed = stage.told.keep(people.list_secrets(list(&workspace)).await).unwrap();
        assert!(listed.secrets.is_empty());
        let refused = people.update_secret(again.clone()).await;
        stage.told.refused(refused, DataLoss, "RECORD_CORRUPT");
        raw.restore(&workspace, &records);

        let remembered = format!("workflow-secrets:{{{workspace}}}:request:once");
        raw.command::<()>(&[b"SET", remembered.as_bytes(), b"garbage"]);
        let refused = people.create_secret(request).await;
        stage.told.refused(refused, DataLoss, "RECORD_CORRUPT");

        raw.set(&workspace, "k/active", b"revision and garbage");
        let refused = people.update_secret(again.clone()).await;
        stage.told.refused(refused, DataLoss, "RECORD_CORRUPT");
        raw.remove(&workspace, "k/active");
        let refused = people.update_secret(again).await;
        stage.told.refused(refused, DataLoss, "DATA_KEY_MISSING");

        let wrong = format!("wrong{i}");
        raw.command::<()>(&[b"SET", hash(&wrong).as_bytes(), b"a string"]);
        let refused = people.create_secret(create(&wrong, "KEY", canary)).await;
        stage.told.refused(refused, DataLoss, "RECORD_CORRUPT");
        raw.command::<()>(&[b"DEL", hash(&wrong).as_bytes()]);
    }
}

async fn broken_kms(stage: &mut Stage) {
    let mut people = stage.client("platform").await;
    // Cold on the second replica.
    let mut reader = stage.platform.client(&stage.replicas[1], "executor").await;
    let mut publisher = stage.platform.client(&stage.replicas[1], "platform").await;
    let faults = [
        Fault::Throttle,
        Fault::Error(500, "KMSInternalException"),
        // In their midst: five failures in a row would be taken for an outage.
        Fault::Error(400, "AccessDeniedException"),
        Fault::Drop,
        Fault::Hang,
        Fault::Body("{\"Plaintext\": 1"),
    ];
    for (i, fault) in faults.into_iter().enumerate() {
        let canary = CANARIES[i % 3];
        let (cold, empty) = (format!("cold{i}"), format!("empty{i}"));
        stage.told.keep(people.create_secret(create(&cold, "KEY", canary)).await).unwrap();
        stage.platform.kms.fault(fault);
        let (created, resolved) = tokio::join!(
            people.create_secret(create(&empty, "KEY", canary)),
            reader.resolve_secrets(resolve(&cold, &["KEY"])),
        );
        let (code, why) = match i == 2 {
            false => (Unavailable, "KMS_UNAVAILABLE"),
            true => (FailedPrecondition, "KMS_KEY_UNUSABLE"),
        };
        stage.told.refused(created, code, why);
        stage.told.refused(resolved, code, why);
        let clients = [&mut publisher, &mut reader];
        failing(&mut stage.told, clients, &cold, canary, code, why).await;
        stage.platform.kms.heal();
    }

    let arn = stage.platform.kms_key.clone();
    stage.platform.kms.set_state(&arn, KeyState::Disabled);
    let refused = people.create_secret(create("disabled", "KEY", CANARIES[0])).await;
    stage.told.refused(refused, FailedPrecondition, "KMS_KEY_UNUSABLE");
    stage.platform.kms.set_state(&arn, KeyState::Enabled);
    stage.platform.kms.stop().await;
    let refused = people.create_secret(create("down", "KEY", CANARIES[1])).await;
    stage.told.refused(refused, Unavailable, "KMS_UNAVAILABLE");
    stage.platform.kms.restart().await;
}

/// Callers that hang up, and calls whose deadline passes, while the KMS is slow.
async fn given_up(stage: &mut Stage) {
    let people = stage.client("platform").await;
    stage.platform.kms.fault(Fault::Delay(Duration::from_millis(800)));
    for (i, canary) in CANARIES.into_iter().enumerate() {
        let (hangs_up, times_out) = (format!("hangsup{i}"), format!("timesout{i}"));
        let mut client = people.clone();
        let request = create(&hangs_up, "KEY", canary);
        let before = stage.platform.kms.generates();
        let call = tokio::spawn(async move { client.create_secret(request).await });
        until(|| stage.platform.kms.generates() > before).await;
        call.abort();
        let mut request = Request::new(create(&times_out, "KEY", canary));
        request.set_timeout(Duration::from_millis(300));
        stage.told.keep(people.clone().create_secret(request).await).unwrap_err();
    }
    // A change goes on when its caller hangs up. At its deadline nothing was
    // committed yet, and only the data key, which others may want, is made.
    let mut raw = RawRedis::connect(&stage.platform.redis);
    for i in 0..3 {
        for (workspace, records) in [(format!("hangsup{i}"), 4), (format!("timesout{i}"), 1)] {
            for _ in 0..200 {
                if raw.records(&workspace).len() == records {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(raw.records(&workspace).len(), records, "{workspace}");
        }
    }
    stage.platform.kms.heal();
}

/// A replica whose audit file goes away.
async fn broken_audit(stage: &mut Stage) {
    let directory = stage.platform.file("audit");
    std::fs::create_dir(&directory).unwrap();
    let file = directory.join("lines");
    stage.replica(&["--audit", file.to_str().unwrap()]).await;
    let replica = stage.replicas.last().unwrap();
    let mut people = stage.platform.client(replica, "platform").await;
    let mut reader = stage.platform.client(replica, "executor").await;
    stage.told.keep(people.create_secret(create("audit", "KEY", CANARIES[0])).await).unwrap();
    stage.told.0.extend(std::fs::read(&file).unwrap());
    std::fs::remove_dir_all(&directory).unwrap();
    let refused = people.create_secret(create("audit", "TWO", CANARIES[1])).await;
    stage.told.refused(refused, Unavailable, "AUDIT_UNAVAILABLE");
    let refused = reader.resolve_secrets(resolve("audit", &["KEY"])).await;
    stage.told.refused(refused, Unavailable, "AUDIT_UNAVAILABLE");
    let (clients, why) = ([&mut people, &mut reader], "AUDIT_UNAVAILABLE");
    failing(&mut stage.told, clients, "audit", CANARIES[0], Unavailable, why).await;
    std::fs::create_dir(&directory).unwrap();
}

async fn broken_redis(stage: &mut Stage) {
    let (mut people, mut reader) = (stage.client("platform").await, stage.client("executor").await);
    let change = |canary: &str| {
        let mut change = update("ws0", "KEY");
        change.value = Some(canary.to_owned());
        change
    };
    stage.platform.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for canary in CANARIES {
        let refused = people.update_secret(change(canary)).await;
        stage.told.refused(refused, ResourceExhausted, "STORE_FULL");
    }
    stage.platform.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);

    stage.platform.redis.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    let refused = people.update_secret(change(CANARIES[0])).await;
    stage.told.refused(refused, Unavailable, "STORE_UNAVAILABLE");
    stage.platform.redis.cli(&["REPLICAOF", "NO", "ONE"]);
    recovered(&mut people, "ws0").await;

    stage.platform.redis.stop_signal();
    for canary in CANARIES {
        let refused = people.update_secret(change(canary)).await;
        stage.told.refused(refused, Unavailable, "STORE_UNAVAILABLE");
    }
    stage.platform.redis.cont_signal();
    recovered(&mut people, "ws0").await;

    stage.platform.redis.kill9();
    for canary in CANARIES {
        let refused = people.update_secret(change(canary)).await;
        stage.told.refused(refused, Unavailable, "STORE_UNAVAILABLE");
        let refused = reader.resolve_secrets(resolve("ws0", &["KEY"])).await;
        stage.told.refused(refused, Unavailable, "STORE_UNAVAILABLE");
        let (clients, why) = ([&mut people, &mut reader], "STORE_UNAVAILABLE");
        failing(&mut stage.told, clients, "ws0", canary, Unavailable, why).await;
    }
    stage.restart_redis().await;
    recovered(&mut people, "ws0").await;
    for canary in CANARIES {
        stage.told.keep(people.update_secret(change(canary)).await).unwrap();
        let request = resolve("ws0", &["KEY"]);
        let answer = reader.resolve_secrets(request).await.unwrap().into_inner();
        assert_eq!(answer.secrets["KEY"].value, canary);
    }
}
