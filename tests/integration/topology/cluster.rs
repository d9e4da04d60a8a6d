//! The engine over a cluster: the behaviour suite, the start, shards that are
//! down.

use std::time::{Duration, Instant};

use workflow_secrets::store::{StoreError, redis::StartError};

use super::{config, connect, listing, named, until_read};
use crate::{
    store_redis_start::{RIGHTS, login, refusal},
    store_suite::suite,
    support::{
        redis_cluster::RedisCluster,
        redis_server::{Options, RedisServer},
        store::{get, meta, rec, set, ws},
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_a_store_like_any_other() {
    let cluster = RedisCluster::three().await;
    let url = cluster.url();
    let store = |name| named(&url, name);
    suite!(together store);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_are_down_do_not_disturb_others() {
    let mut cluster = RedisCluster::three().await;
    let store = connect(config(&cluster.url())).await;
    let all: Vec<_> = (0..3).flat_map(|master| cluster.workspaces(master, 1)).collect();
    for workspace in &all {
        set(&store, workspace, meta("A"), rec(1, b"kept")).await;
    }
    cluster.nodes[0].kill9();
    // The first calls wait for a connection; later ones do not.
    let start = Instant::now();
    while store.read(&ws(&all[0]), &[meta("A")]).await.is_ok() || start.elapsed().as_secs() < 2 {
        assert!(start.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let start = Instant::now();
    for _ in 0..50 {
        let read = store.read(&ws(&all[0]), &[meta("A")]).await;
        assert!(matches!(read, Err(StoreError::Unavailable(_))));
    }
    assert!(start.elapsed() < Duration::from_secs(10), "calls to a dead shard pile up");
    // What is served is served, also by a process that starts now.
    let later = connect(config(&cluster.url())).await;
    for store in [&store, &later] {
        assert_eq!(store.health().await, Ok(()));
        for workspace in &all[1..] {
            set(store, workspace, meta("A"), rec(2, b"new")).await;
            assert!(get(store, workspace, &meta("A")).await == Some(rec(2, b"new")));
        }
        assert!(store.read(&ws(&all[0]), &[meta("A")]).await.is_err());
    }
    cluster.nodes[1].kill9();
    cluster.nodes[2].kill9();
    let start = Instant::now();
    while store.health().await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(60));
    }
    assert!(matches!(refusal(config(&cluster.url())).await, StartError::NoMaster(_)));
    for node in &mut cluster.nodes {
        node.restart().await;
    }
    for workspace in &all {
        until_read(&store, workspace).await;
        until_read(&later, workspace).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_master_of_a_cluster_is_checked() {
    let cluster = RedisCluster::three().await;
    let node = format!("redis://127.0.0.1:{}", cluster.nodes[0].port());
    assert_eq!(refusal(config(&node)).await, StartError::IsCluster);
    cluster.nodes[2].expect(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    assert_eq!(refusal(config(&cluster.url())).await, StartError::Evicts);
    cluster.nodes[2].expect(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let mut durable = config(&cluster.url());
    durable.require_durable = true;
    assert_eq!(refusal(durable).await, StartError::NotDurable);
    let alone = RedisServer::start(Options::default()).await;
    let url = format!("redis-cluster://127.0.0.1:{}", alone.port());
    let refused = StartError::NoMaster("it is no node of a cluster");
    assert_eq!(refusal(config(&url)).await, refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_told_are_enough_for_a_cluster() {
    let rules: Vec<_> = [">s3cret", "~workflow-secrets:*"]
        .into_iter()
        .chain(RIGHTS.split(' '))
        .chain(["+cluster|info", "+cluster|slots", "+cluster|getkeysinslot", "+asking"])
        .collect();
    let options = Options::default().user("app", &rules);
    let cluster = RedisCluster::start(3, options).await;
    assert!(matches!(
        refusal(login(config(&cluster.url()), "app", "wrong")).await,
        StartError::NoMaster("access denied")
    ));
    let store = connect(login(config(&cluster.url()), "app", "s3cret")).await;
    for master in 0..3 {
        let workspace = &cluster.workspaces(master, 1)[0];
        set(&store, workspace, meta("A"), rec(1, b"x")).await;
        assert_eq!(store.scan(&ws(workspace), "", None, 9).await.unwrap().len(), 1);
    }
    assert_eq!(listing::all(&store).await.len(), 3);
    assert_eq!(store.health().await, Ok(()));
    // ASKING too.
    let workspace = &cluster.workspaces(0, 2)[1];
    set(&store, workspace, meta("A"), rec(1, b"x")).await;
    let slot = cluster.slot(workspace);
    cluster.begin_move(slot, 0, 1);
    cluster.move_keys(slot, 0, 1);
    assert!(get(&store, workspace, &meta("A")).await.is_some());
    cluster.end_move(slot, 1);
}
