//! Slots that move from one master to another.

use std::time::Duration;

use workflow_secrets::store::{Batch, Key, StoreError, Trail};

use super::{SERVED_WITHIN, config, confirmed_by, connect};
use crate::support::{
    load::Load,
    redis_cluster::RedisCluster,
    redis_server::until_within,
    store::{at, batch, delete, get, meta, put, rec, request, run, set, show, ws},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_load_and_no_call_fails() {
    let cluster = RedisCluster::three().await;
    let stores = [confirmed_by(0, &cluster.url()).await, confirmed_by(0, &cluster.url()).await];
    let all: Vec<_> = (0..3).flat_map(|master| cluster.workspaces(master, 3)).collect();
    let load = Load::start(&stores, &all, true).await;
    for workspace in &all[..3] {
        let slot = cluster.slot(workspace);
        cluster.begin_move(slot, 0, 1);
        load.served(&|_| true, SERVED_WITHIN).await;
        cluster.move_keys(slot, 0, 1);
        load.served(&|_| true, SERVED_WITHIN).await;
        cluster.end_move(slot, 1);
        load.served(&|_| true, SERVED_WITHIN).await;
    }
    assert_eq!(load.failures(&|_| true), 0);
    assert_eq!(load.end().await.1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_only_redirections_name_is_left_when_they_no_longer_do() {
    let mut cluster = RedisCluster::three().await;
    cluster.join().await;
    let store = connect(config(&cluster.url())).await;
    let workspace = &cluster.workspaces(0, 1)[0];
    set(&store, workspace, meta("A"), rec(1, b"kept")).await;
    let slot = cluster.slot(workspace);
    cluster.begin_move(slot, 0, 3);
    cluster.move_keys(slot, 0, 3);
    // But for the one that asks.
    let connections = || cluster.nodes[3].cli(&["CLIENT", "LIST"]).lines().count() - 1;
    for _ in 0..2 {
        assert!(get(&store, workspace, &meta("A")).await.is_some());
        assert!(connections() > 0);
        until_within(Duration::from_secs(30), || connections() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_moving_slot_nothing_is_written_in_part() {
    let cluster = RedisCluster::three().await;
    let store = connect(config(&cluster.url())).await;
    let workspace = &cluster.workspaces(0, 1)[0];
    set(&store, workspace, meta("A"), rec(1, b"kept")).await;
    let revision = store.revision(&ws(workspace)).await.unwrap();
    let slot = cluster.slot(workspace);
    let refused = |outcome: Option<StoreError>| {
        assert!(matches!(outcome, Some(StoreError::Unavailable(_))), "{outcome:?}");
    };
    // Empties the records and would fill them again with the entry.
    let emptying = || Batch {
        trail: Some(Trail { entry: b"entry".to_vec(), keep: 9 }),
        ..batch([delete(meta("A"), at(1))])
    };
    let remembered = || Batch {
        request: Some((request("r"), b"outcome".to_vec())),
        ..batch([put(meta("B"), None, rec(1, b"x"))])
    };
    cluster.begin_move(slot, 0, 1);
    for step in ["before its keys", "after its keys"] {
        let tombstone = rec(1, b"tombstone");
        if step == "before its keys" {
            refused(store.commit(&ws(workspace), emptying()).await.err());
            refused(store.shred(&ws(workspace), tombstone).await.err());
        }
        refused(store.commit(&ws(workspace), remembered()).await.err());
        assert_eq!(show(&store, workspace, &meta("A")).await, Some((1, "kept".into())), "{step}");
        assert!(get(&store, workspace, &meta("B")).await.is_none());
        assert!(get(&store, workspace, &Key::tombstone()).await.is_none());
        assert_eq!(store.revision(&ws(workspace)).await.unwrap(), revision);
        assert_eq!(store.scan(&ws(workspace), "", None, 9).await.unwrap().len(), 1);
        cluster.move_keys(slot, 0, 1);
    }
    // What needs no new key is carried out, where the keys are now.
    let change = batch([put(meta("A"), at(1), rec(2, b"new"))]);
    assert_eq!(run(&store, workspace, change).await, "done");
    cluster.end_move(slot, 1);
    assert_eq!(run(&store, workspace, remembered()).await, "done");
    assert_eq!(store.shred(&ws(workspace), rec(1, b"tombstone")).await.ok().unwrap().records, 2);
    assert!(store.request(&ws(workspace), &request("r")).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shredding_forgets_requests_on_both_sides_of_a_move() {
    let cluster = RedisCluster::three().await;
    let store = connect(config(&cluster.url())).await;
    let workspace = &cluster.workspaces(0, 1)[0];
    for number in 0..3 {
        let change = Batch {
            request: Some((request(&format!("r{number}")), b"outcome".to_vec())),
            ..batch([put(meta("A"), None, rec(1, b"x"))])
        };
        assert_eq!(run(&store, workspace, change).await, "done");
    }
    let key = |number| format!("workflow-secrets:{{{workspace}}}:request:r{number}");
    let slot = cluster.slot(workspace);
    cluster.begin_move(slot, 0, 1);
    let records = ["records", "index", "revision"];
    let mut moved = records.map(|key| format!("workflow-secrets:{{{workspace}}}:{key}")).to_vec();
    moved.push(key(1));
    cluster.move_some(&moved, 0, 1);
    let count =
        |node: usize| cluster.nodes[node].cli(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]);
    assert_eq!((count(0).as_str(), count(1).as_str()), ("2", "4"));
    assert!(store.shred(&ws(workspace), rec(1, b"tombstone")).await.is_ok());
    assert_eq!((count(0).as_str(), count(1).as_str()), ("0", "3"));
}
