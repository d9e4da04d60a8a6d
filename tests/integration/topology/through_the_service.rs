//! Failovers and moves of slots, seen by callers of the service.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tonic::{Code, Status};
use workflow_secrets::grpc::proto::RewrapDataKeysRequest;

use crate::support::{
    platform::{Platform, assert_unavailable, create, reason, resolve, update, value, with},
    redis_cluster::RedisCluster,
    sentinels::Sentinels,
};

/// Longest call: several answers of Redis may be waited for, and again some for a
/// busy machine.
const BOUND: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resolve_goes_on_after_a_failover() {
    let mut redis = Sentinels::start().await;
    let platform = Platform::start().await;
    let flags = ["--store", &redis.url(), "--redis-min-replicas", "1"];
    let replica = platform.replica_with(&flags).await;
    let mut writer = platform.client(&replica, "platform").await;
    writer.create_secret(create("ws", "KEY", "value-1")).await.unwrap();
    let (stop, resolved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut reader = platform.client(&replica, "executor").await;
    let task = tokio::spawn({
        let (stop, resolved) = (Arc::clone(&stop), Arc::clone(&resolved));
        async move {
            while !stop.load(SeqCst) {
                let start = Instant::now();
                match reader.resolve_secrets(resolve("ws", &["KEY=k"])).await {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        let version = answer.secrets["k"].version;
                        assert_eq!(value(&answer, "k"), format!("value-{version}"));
                        resolved.fetch_add(1, SeqCst);
                    }
                    error => assert_unavailable(error, "STORE_UNAVAILABLE"),
                }
                assert!(start.elapsed() < BOUND);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    while resolved.load(SeqCst) < 10 {
        assert!(!task.is_finished());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let primary = redis.master();
    redis.servers[primary].kill9();
    redis.promoted(primary).await;
    let (before, start) = (resolved.load(SeqCst), Instant::now());
    while resolved.load(SeqCst) < before + 2 {
        assert!(start.elapsed() < super::SERVED_WITHIN && !task.is_finished());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Once the other replica follows the new primary, writes are confirmed again.
    let start = Instant::now();
    let change = || with(update("ws", "KEY"), |u| u.value = Some("value-2".to_owned()));
    while writer.update_secret(change()).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, SeqCst);
    task.await.unwrap();
}

/// All workspaces, or an error: never fewer and a report that all is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_over_all_workspaces_passes_over_none_while_slots_move() {
    let cluster = RedisCluster::three().await;
    let platform = Platform::start().await;
    let replica = platform.replica_with(&["--store", &cluster.url()]).await;
    let mut writer = platform.client(&replica, "platform").await;
    let all: Vec<_> = (0..3).flat_map(|master| cluster.workspaces(master, 1)).collect();
    for workspace in &all {
        writer.create_secret(create(workspace, "KEY", "value")).await.unwrap();
    }
    let operator = platform.key_client(&replica, "operator").await;
    let rewrap = async || {
        let request = RewrapDataKeysRequest::default();
        let mut steps = operator.clone().rewrap_data_keys(request).await?.into_inner();
        let mut last = None;
        while let Some(step) = steps.message().await? {
            last = Some(step);
        }
        Ok::<_, Status>(last.expect("a report"))
    };
    let slot = cluster.slot(&all[2]);
    cluster.begin_move(slot, 2, 0);
    cluster.move_keys(slot, 2, 0);
    let report = rewrap().await.unwrap();
    assert_eq!((report.done, report.workspaces, report.unchanged), (true, 3, 3));
    cluster.end_move(slot, 0);
    // A move that was broken off at one end. What is there is there as before.
    let slot = cluster.slot(&all[1]).to_string();
    cluster.nodes[1].expect(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &cluster.id(0)]);
    let status = rewrap().await.unwrap_err();
    assert_eq!(reason(&status), (Code::Unavailable, "STORE_UNAVAILABLE".to_owned()));
    cluster.nodes[1].expect(&["CLUSTER", "SETSLOT", &slot, "STABLE"]);
    let report = rewrap().await.unwrap();
    assert_eq!((report.done, report.workspaces, report.unchanged), (true, 3, 3));
}
