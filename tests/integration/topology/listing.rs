//! Listings of all workspaces while masters change.

use std::collections::BTreeSet;

use workflow_secrets::store::WorkspacesCursor;

use super::{config, connect, until_read};
use crate::{
    store_redis,
    support::{
        redis_cluster::RedisCluster,
        redis_server::{Options, RedisServer},
        store::S,
    },
};

/// Lines that make so many workspaces.
fn lines<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(|name| format!("HSET workflow-secrets:{{{name}}}:records m/A 12345678x\n")).collect()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("ws{number}")).collect()
}

async fn page(
    store: &S,
    cursor: Option<&WorkspacesCursor>,
) -> (Vec<String>, Option<WorkspacesCursor>) {
    let (page, next) = store.workspaces(cursor).await.unwrap();
    (page.iter().map(ToString::to_string).collect(), next)
}

async fn rest(store: &S, mut cursor: Option<WorkspacesCursor>, found: &mut BTreeSet<String>) {
    while cursor.is_some() {
        let (more, next) = page(store, cursor.as_ref()).await;
        found.extend(more);
        cursor = next;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_outlives_a_restart() {
    let mut server = RedisServer::start(Options::default().set("appendonly", &["yes"])).await;
    let all = names(5_000);
    server.feed(&lines(all.iter()));
    let store = store_redis::connect(&server).await;
    let (first, cursor) = page(&store, None).await;
    let mut found: BTreeSet<_> = first.into_iter().collect();
    assert!(found.len() < all.len());
    // Cursors of the process before mean nothing to the one after.
    server.shutdown_nosave();
    server.restart().await;
    until_read(&store, "ws0").await;
    rest(&store, cursor, &mut found).await;
    assert_eq!(found, all.into_iter().collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_outlives_a_move_of_slots() {
    let cluster = RedisCluster::three().await;
    let store = connect(config(&cluster.url())).await;
    let names = names(3_000);
    let slots = cluster.nodes[0]
        .feed(&names.iter().map(|name| format!("CLUSTER KEYSLOT {name}\n")).collect::<String>());
    let slots: Vec<u16> = slots.lines().map(|slot| slot.parse().unwrap()).collect();
    for (node, bounds) in [0..5_461, 5_461..10_923, 10_923..16_384].into_iter().enumerate() {
        let here = names.iter().zip(&slots).filter(|(_, slot)| bounds.contains(*slot));
        cluster.nodes[node].feed(&lines(here.map(|(name, _)| name)));
    }
    let (first, cursor) = page(&store, None).await;
    let mut found: BTreeSet<_> = first.into_iter().collect();
    // A workspace of the last master comes to the first.
    let (late, slot) = names.iter().zip(&slots).find(|(_, slot)| **slot >= 10_923).unwrap();
    assert!(!found.contains(late));
    cluster.begin_move(*slot, 2, 0);
    cluster.move_keys(*slot, 2, 0);
    cluster.end_move(*slot, 0);
    until_read(&store, late).await;
    rest(&store, cursor, &mut found).await;
    assert_eq!(found, names.iter().cloned().collect());
}
