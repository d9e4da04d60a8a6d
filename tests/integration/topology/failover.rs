//! Primaries that die or hang under load.

use super::{SERVED_WITHIN, confirmed_by};
use crate::support::{
    load::Load,
    redis_cluster::RedisCluster,
    sentinels::Sentinels,
    store::{S, batch, get, meta, put, rec, ws},
};

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("w{number}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_replace_a_killed_primary() {
    let mut redis = Sentinels::start().await;
    let stores = [confirmed_by(1, &redis.url()).await, confirmed_by(1, &redis.url()).await];
    let load = Load::start(&stores, &names(4), true).await;
    let primary = redis.master();
    redis.servers[primary].kill9();
    redis.promoted(primary).await;
    load.served(&|_| true, SERVED_WITHIN).await;
    let (acknowledged, lost) = load.end().await;
    assert!(acknowledged > 0);
    assert_eq!(lost, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_replace_a_hanging_primary_and_it_is_not_believed_when_it_goes_on() {
    let redis = Sentinels::start().await;
    let stores = [confirmed_by(1, &redis.url()).await, confirmed_by(1, &redis.url()).await];
    // A connection that nothing uses while the primary changes.
    let idle = confirmed_by(1, &redis.url()).await;
    let load = Load::start(&stores, &names(4), true).await;
    let primary = redis.master();
    redis.servers[primary].stop_signal();
    redis.promoted(primary).await;
    load.served(&|_| true, SERVED_WITHIN).await;
    let change = batch([put(meta("NEW"), None, rec(7, b"new"))]);
    let written = stores[0].commit(&ws("w0"), change).await;
    assert!(written.is_ok(), "{:?}", written.err());
    redis.servers[primary].cont_signal();
    // It calls itself master until the sentinels tell it otherwise.
    for _ in 0..20 {
        if let Ok(found) = idle.read(&ws("w0"), &[meta("NEW")]).await {
            assert!(found[0].is_some(), "an old answer");
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    load.served(&|_| true, SERVED_WITHIN).await;
    assert_eq!(load.end().await.1, 0);
}

/// What was acknowledged by a primary that no replica follows, and how much of
/// it is there after the failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_replica_has_is_lost_unless_replicas_are_demanded() {
    const WRITES: usize = 20;
    let mut redis = Sentinels::start().await;
    let (hasty, careful) =
        (confirmed_by(0, &redis.url()).await, confirmed_by(1, &redis.url()).await);
    let primary = redis.master();
    let replicas: Vec<_> = (0..3).filter(|server| *server != primary).collect();
    for replica in &replicas {
        redis.servers[*replica].stop_signal();
    }
    redis.servers[primary].cli(&["CLIENT", "KILL", "TYPE", "replica"]);
    let mut acknowledged = [vec![], vec![]];
    for number in 0..WRITES {
        for (at, (store, workspace)) in
            [(&hasty, "hasty"), (&careful, "careful")].into_iter().enumerate()
        {
            // One try of the careful one takes long.
            if at == 1 && number > 1 {
                continue;
            }
            let key = meta(&format!("K{number}"));
            let change = batch([put(key.clone(), None, rec(1, b"x"))]);
            if store.commit(&ws(workspace), change).await.is_ok() {
                acknowledged[at].push(key);
            }
        }
    }
    redis.servers[primary].kill9();
    for replica in &replicas {
        redis.servers[*replica].cont_signal();
    }
    redis.promoted(primary).await;
    let mut lost = [0, 0];
    for (at, (store, workspace)) in
        [(&hasty, "hasty"), (&careful, "careful")].into_iter().enumerate()
    {
        super::until_read(store, workspace).await;
        for key in &acknowledged[at] {
            lost[at] += usize::from(get(store, workspace, key).await.is_none());
        }
    }
    println!(
        "no replica demanded: {} acknowledged, {} lost; one demanded: {} acknowledged, {} lost",
        acknowledged[0].len(),
        lost[0],
        acknowledged[1].len(),
        lost[1]
    );
    assert_eq!(acknowledged[0].len(), WRITES);
    assert_eq!(lost[0], WRITES);
    assert!(acknowledged[1].is_empty());
}

fn of_first(workspace: &str) -> bool {
    workspace.starts_with("ws-0-")
}

fn of_others(workspace: &str) -> bool {
    !of_first(workspace)
}

fn of_all_masters(cluster: &RedisCluster) -> Vec<String> {
    (0..3).flat_map(|master| cluster.workspaces(master, 2)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_replaces_a_killed_master_and_the_others_are_undisturbed() {
    let mut cluster = RedisCluster::six().await;
    let stores: Vec<S> = vec![confirmed_by(0, &cluster.url()).await];
    let load = Load::start(&stores, &of_all_masters(&cluster), false).await;
    cluster.nodes[0].kill9();
    cluster.promoted(3).await;
    load.served(&of_first, SERVED_WITHIN).await;
    assert_eq!(load.failures(&of_others), 0);
    let (acknowledged, lost) = load.end().await;
    println!("{acknowledged} acknowledged, {lost} lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_replaces_a_hanging_master_and_loses_nothing_confirmed() {
    let cluster = RedisCluster::six().await;
    let stores = [confirmed_by(1, &cluster.url()).await, confirmed_by(1, &cluster.url()).await];
    let load = Load::start(&stores, &of_all_masters(&cluster), true).await;
    cluster.nodes[0].stop_signal();
    cluster.promoted(3).await;
    // The new master has no replica yet, so nothing can be confirmed.
    load.read(&of_first, SERVED_WITHIN).await;
    cluster.nodes[0].cont_signal();
    load.served(&of_first, std::time::Duration::from_secs(60)).await;
    assert_eq!(load.failures(&of_others), 0);
    assert_eq!(load.end().await.1, 0);
}
