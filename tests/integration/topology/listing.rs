//! Listings of all workspaces while masters change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

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

/// Workspaces on all masters, and their slots.
fn filled(cluster: &RedisCluster) -> (Vec<String>, Vec<u16>) {
    let names = names(3_000);
    let slots = cluster.nodes[0]
        .feed(&names.iter().map(|name| format!("CLUSTER KEYSLOT {name}\n")).collect::<String>());
    let slots: Vec<u16> = slots.lines().map(|slot| slot.parse().unwrap()).collect();
    for (node, bounds) in [0..5_461, 5_461..10_923, 10_923..16_384].into_iter().enumerate() {
        let here = names.iter().zip(&slots).filter(|(_, slot)| bounds.contains(*slot));
        cluster.nodes[node].feed(&lines(here.map(|(name, _)| name)));
    }
    (names, slots)
}

pub(super) async fn all(store: &S) -> BTreeSet<String> {
    let (first, cursor) = page(store, None).await;
    let mut found = first.into_iter().collect();
    rest(store, cursor, &mut found).await;
    found
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
    let (names, slots) = filled(&cluster);
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

/// To a master that was looked at before, and to one that has no slots yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_misses_nothing_of_a_slot_in_mid_move() {
    let mut cluster = RedisCluster::three().await;
    cluster.join().await;
    let store = connect(config(&cluster.url())).await;
    let (names, slots) = filled(&cluster);
    let names: BTreeSet<_> = names.into_iter().zip(slots).collect();
    let expected: BTreeSet<_> = names.iter().map(|(name, _)| name.clone()).collect();
    // Of a slot with several workspaces, so that it can be moved in part.
    let mut of_last = BTreeMap::<u16, Vec<&String>>::new();
    for (name, slot) in names.iter().filter(|(_, slot)| *slot >= 10_923) {
        of_last.entry(*slot).or_default().push(name);
    }
    let shared = of_last.into_iter().filter(|(_, names)| names.len() > 1);
    let records = |name: &String| format!("workflow-secrets:{{{name}}}:records");
    for ((slot, names), to) in shared.zip([0, 3]) {
        cluster.begin_move(slot, 2, to);
        let (first, cursor) = page(&store, None).await;
        let mut found: BTreeSet<_> = first.into_iter().collect();
        assert!(names.iter().all(|name| !found.contains(*name)));
        cluster.move_some(&[records(names[0])], 2, to);
        rest(&store, cursor, &mut found).await;
        assert_eq!(missing(&expected, &found), none(), "moved in part, to {to}");
        cluster.move_keys(slot, 2, to);
        assert_eq!(missing(&expected, &all(&store).await), none(), "moved, to {to}");
        cluster.end_move(slot, to);
        assert_eq!(missing(&expected, &all(&store).await), none(), "ended, to {to}");
    }
}

fn none() -> Vec<String> {
    vec![]
}

fn missing(expected: &BTreeSet<String>, found: &BTreeSet<String>) -> Vec<String> {
    expected.difference(found).cloned().collect()
}

/// Slots move one after the other, as `redis-cli --cluster reshard` does it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listings_in_the_midst_of_resharding_are_whole() {
    let mut cluster = RedisCluster::three().await;
    cluster.join().await;
    let store = connect(config(&cluster.url())).await;
    let (names, mut slots) = filled(&cluster);
    let expected: BTreeSet<_> = names.into_iter().collect();
    slots.retain(|slot| *slot >= 10_923);
    slots.sort_unstable();
    slots.dedup();
    let (over, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let resharding = std::thread::spawn({
        let (over, moved) = (over.clone(), moved.clone());
        move || {
            for slot in slots {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let to = [0, 3][usize::from(slot) % 2];
                cluster.begin_move(slot, 2, to);
                cluster.move_keys(slot, 2, to);
                cluster.end_move(slot, to);
                moved.fetch_add(1, Ordering::Relaxed);
            }
            cluster
        }
    });
    while moved.load(Ordering::Relaxed) < 50 {
        assert_eq!(missing(&expected, &all(&store).await), none());
    }
    over.store(true, Ordering::Relaxed);
    drop(resharding.join().unwrap());
}

/// What cannot be known is not told: the one says that the slot leaves it, the
/// other knows of none that comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_that_cannot_be_whole_fails() {
    let cluster = RedisCluster::three().await;
    let store = connect(config(&cluster.url())).await;
    let slot = cluster.slot(&cluster.workspaces(0, 1)[0]);
    cluster.nodes[0].expect(&[
        "CLUSTER",
        "SETSLOT",
        &slot.to_string(),
        "MIGRATING",
        &cluster.id(1),
    ]);
    let mut cursor = None;
    let error = loop {
        match store.workspaces(cursor.as_ref()).await {
            Err(error) => break error,
            Ok((_, None)) => panic!("a listing without a slot"),
            Ok((_, next)) => cursor = next,
        }
    };
    let expected = "store unavailable: a slot of Redis is being moved: run this again";
    assert_eq!(error.to_string(), expected);
    cluster.nodes[0].expect(&["CLUSTER", "SETSLOT", &slot.to_string(), "STABLE"]);
    assert_eq!(all(&store).await, BTreeSet::new());
}
