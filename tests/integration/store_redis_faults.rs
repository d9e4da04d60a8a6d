//! The Redis engine when Redis crashes, hangs or becomes a replica.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use workflow_secrets::store::{
    Store, StoreError,
    redis::{RedisConfig, RedisStore, RedisUrl},
};

use crate::{
    store_redis::{config, connect},
    support::{
        redis_server::{Options, RedisServer},
        store::{batch, get, meta, put, rec, set, ws},
    },
};

/// Time in which service must be back after Redis is.
const BACK: Duration = Duration::from_secs(3);

/// Default deadline of a call (1 s), with room for a slow machine.
const DEADLINE: Duration = Duration::from_secs(3);

async fn unavailable(store: &Arc<dyn Store>) {
    let start = Instant::now();
    let read = store.read(&ws("w"), &[meta("A")]).await.err();
    assert!(matches!(read, Some(StoreError::Unavailable(_))), "{read:?}");
    assert!(start.elapsed() < DEADLINE);
    let start = Instant::now();
    let change = batch([put(meta("LOST"), None, rec(1, b"x"))]);
    let commit = store.commit(&ws("w"), change).await.err();
    assert!(matches!(commit, Some(StoreError::Unavailable(_))), "{commit:?}");
    assert!(start.elapsed() < DEADLINE);
    let health = store.health().await;
    assert!(matches!(health, Err(StoreError::Unavailable(_))), "{health:?}");
}

async fn back(store: &Arc<dyn Store>) {
    let start = Instant::now();
    loop {
        let change = batch([put(meta("BACK"), None, rec(1, b"x"))]);
        let commit = store.commit(&ws("w"), change).await;
        if commit.is_ok() && store.health().await.is_ok() {
            break;
        }
        assert!(start.elapsed() < BACK, "{:?}", commit.err());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(get(store, "w", &meta("BACK")).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_is_found_again() {
    let mut server = RedisServer::start(Options::default().durable()).await;
    let store = connect(&server).await;
    set(&store, "w", meta("A"), rec(1, b"kept")).await;
    for _ in 0..2 {
        server.kill9();
        unavailable(&store).await;
        server.restart().await;
        back(&store).await;
        assert!(get(&store, "w", &meta("A")).await == Some(rec(1, b"kept")));
    }
    // Also after it was away for long, whatever the pauses have grown to.
    server.shutdown_nosave();
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.restart().await;
    back(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_redis_is_given_up_and_found_again() {
    let server = RedisServer::start(Options::default()).await;
    let store = connect(&server).await;
    set(&store, "w", meta("A"), rec(1, b"kept")).await;
    server.stop_signal();
    unavailable(&store).await;
    unavailable(&store).await;
    server.cont_signal();
    back(&store).await;
    assert!(get(&store, "w", &meta("A")).await == Some(rec(1, b"kept")));
}

/// Passes bytes on, until the connections open now are told to fail.
struct Proxy {
    port: u16,
    fail: watch::Sender<Fail>,
}

#[derive(Clone, Copy)]
enum Fail {
    /// They stay open, but nothing goes through any more, as when a firewall
    /// has forgotten them.
    Freeze,
    /// They close with the next request, which does not go through.
    Cut,
}

impl Proxy {
    async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fail = watch::Sender::new(Fail::Freeze);
        let source = fail.clone();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                let mut fail = source.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => return,
                        _ = fail.changed() => {}
                    }
                    let how = *fail.borrow();
                    match how {
                        Fail::Freeze => std::future::pending().await,
                        Fail::Cut => client.readable().await.unwrap(),
                    }
                });
            }
        });
        Self { port, fail }
    }

    async fn connect(&self) -> Arc<dyn Store> {
        let url = format!("redis://127.0.0.1:{}", self.port);
        let config = RedisConfig::new(RedisUrl::parse(&url).unwrap());
        Arc::new(RedisStore::connect(config).await.unwrap())
    }

    async fn fail(&self, how: Fail) {
        self.fail.send_replace(how);
        // Until the connections know.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_went_silent_is_replaced() {
    let server = RedisServer::start(Options::default()).await;
    let proxy = Proxy::start(server.port()).await;
    let store = proxy.connect().await;
    for _ in 0..2 {
        set(&store, "w", meta("A"), rec(1, b"kept")).await;
        proxy.fail(Fail::Freeze).await;
        let start = Instant::now();
        let read = store.read(&ws("w"), &[meta("A")]).await.err();
        assert!(matches!(read, Some(StoreError::Unavailable(_))), "{read:?}");
        assert!(start.elapsed() < DEADLINE);
        back(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_is_tried_once_more_and_a_commit_is_not() {
    let server = RedisServer::start(Options::default()).await;
    let proxy = Proxy::start(server.port()).await;
    let store = proxy.connect().await;
    set(&store, "w", meta("A"), rec(1, b"kept")).await;
    proxy.fail(Fail::Cut).await;
    assert!(get(&store, "w", &meta("A")).await == Some(rec(1, b"kept")));
    proxy.fail(Fail::Cut).await;
    assert_eq!(store.scan(&ws("w"), "", None, 9).await.unwrap().len(), 1);
    proxy.fail(Fail::Cut).await;
    let change = batch([put(meta("B"), None, rec(1, b"x"))]);
    let commit = store.commit(&ws("w"), change).await.err();
    assert_eq!(commit, Some(StoreError::Unavailable("connection to Redis lost")));
    assert!(get(&store, "w", &meta("B")).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn later_connections_are_checked_too() {
    let server = RedisServer::start(Options::default()).await;
    let store = connect(&server).await;
    set(&store, "w", meta("A"), rec(1, b"kept")).await;
    // As when another server takes over the name.
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    unavailable(&store).await;
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    back(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_connection_goes_unnoticed() {
    let server = RedisServer::start(Options::default()).await;
    let store = connect(&server).await;
    set(&store, "w", meta("A"), rec(1, b"kept")).await;
    for _ in 0..20 {
        server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        assert!(get(&store, "w", &meta("A")).await.is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_turned_replica_is_given_up() {
    let server = RedisServer::start(Options::default()).await;
    let store = connect(&server).await;
    set(&store, "w", meta("A"), rec(1, b"kept")).await;
    // Port 1 of loopback: nobody listens there.
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    let change = batch([put(meta("LOST"), None, rec(1, b"x"))]);
    let commit = store.commit(&ws("w"), change).await.err();
    assert!(matches!(commit, Some(StoreError::Unavailable(_))), "{commit:?}");
    // From then on reads may be stale: there are none.
    unavailable(&store).await;
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    back(&store).await;
    assert!(get(&store, "w", &meta("LOST")).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_tells_what_stops_writes() {
    let server = RedisServer::start(Options::default()).await;
    let store = connect(&server).await;
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let starved = StoreError::Unavailable("Redis has too few replicas to write");
    assert_eq!(store.health().await, Err(starved.clone()));
    let change = batch([put(meta("A"), None, rec(1, b"x"))]);
    assert_eq!(store.commit(&ws("w"), change).await.err(), Some(starved));
    assert!(get(&store, "w", &meta("A")).await.is_none());
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    assert_eq!(store.health().await, Ok(()));
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    assert!(store.health().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_outlive_kill_9() {
    const WRITERS: u64 = 8;
    let mut server = RedisServer::start(Options::default().durable()).await;
    let store = connect(&server).await;
    let written: Arc<Vec<AtomicU64>> = Arc::new((0..WRITERS).map(|_| AtomicU64::new(0)).collect());
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, written) = (Arc::clone(&store), Arc::clone(&written));
            tokio::spawn(async move {
                let slot = &written[usize::try_from(writer).unwrap()];
                for revision in 1.. {
                    let key = meta(&format!("W{writer}_{revision}"));
                    let change = batch([put(key, None, rec(revision, b"x"))]);
                    if store.commit(&ws("w"), change).await.is_err() {
                        break;
                    }
                    slot.store(revision, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let total = || written.iter().map(|n| n.load(Ordering::SeqCst)).sum::<u64>();
    while total() < 400 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.kill9();
    for task in tasks {
        task.await.unwrap();
    }
    server.restart().await;
    back(&store).await;
    for (writer, last) in written.iter().enumerate() {
        for revision in 1..=last.load(Ordering::SeqCst) {
            let key = meta(&format!("W{writer}_{revision}"));
            assert!(get(&store, "w", &key).await.is_some(), "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_with_replicas_recover_too() {
    let mut server = RedisServer::start(Options::default().durable()).await;
    let mut config = config(&server);
    config.min_replicas = 1;
    let store: Arc<dyn Store> = Arc::new(RedisStore::connect(config).await.unwrap());
    let _replica = RedisServer::start(Options::default().replica_of(&server)).await;
    server.replicated().await;
    set(&store, "w", meta("A"), rec(1, b"x")).await;
    server.kill9();
    unavailable(&store).await;
    server.restart().await;
    server.replicated().await;
    back(&store).await;
}
