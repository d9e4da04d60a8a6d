//! Calls on threads of their own: which connection lives where, and by which way it
//! asks Redis.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use tokio::{net::TcpListener, runtime::Handle, time::timeout};
use tokio_util::sync::CancellationToken;
use workflow_secrets::{
    app::Workers,
    grpc::{
        accept::{self, AcceptLimits},
        tls,
    },
    store::{Store, redis::RedisStore},
};

use crate::{
    store_redis::config,
    support::{
        pki::{self, Ca},
        redis_server::{Options, RedisServer},
        store::{get, meta, rec, set, ws},
    },
};

/// Far longer than anything here takes: a hung test fails instead.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn connections_go_to_the_runtime_that_has_fewest() {
    let workers = Workers::of(3).unwrap();
    let (ca, dir) = (Ca::new(), tempfile::tempdir().unwrap());
    let files = pki::write_server_files(dir.path(), &ca.server(), &ca);
    let tls = Arc::new(ArcSwap::new(tls::load(&files).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (limits, stop) = (AcceptLimits::default(), CancellationToken::new());
    let mut incoming = accept::spread(listener, tls, limits, stop.clone(), workers.runtimes());
    let client = pki::client_config(&ca, Some(&ca.client(&["spiffe://td/executor"])));
    let (mut here, mut there) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    // Whichever comes next, and on which of the three it is.
    let mut connect = async |here: &mut Vec<_>, there: &mut [Vec<_>; 3]| {
        here.push(pki::connect(address, Arc::clone(&client)).await.unwrap());
        let mut next: Vec<_> = incoming.iter_mut().map(|incoming| incoming.next()).collect();
        let any = futures_util::future::select_all(next.iter_mut());
        let (connection, at, _) = timeout(PATIENCE, any).await.unwrap();
        there[at].push(connection.unwrap().unwrap());
        at
    };
    let mut first = BTreeSet::new();
    for _ in 0..3 {
        first.insert(connect(&mut here, &mut there).await);
    }
    assert_eq!(first.len(), 3, "one on each");
    for _ in 0..3 {
        connect(&mut here, &mut there).await;
    }
    assert!(there.iter().all(|on| on.len() == 2), "two on each");
    // Two of one go: the next two take their place.
    there[1].clear();
    assert_eq!(connect(&mut here, &mut there).await, 1);
    assert_eq!(connect(&mut here, &mut there).await, 1);
    stop.cancel();
    for incoming in &mut incoming {
        assert!(timeout(PATIENCE, incoming.next()).await.unwrap().is_none());
    }
}

/// Ids of the connections whose last command was this one.
fn connections(server: &RedisServer, last: &str) -> BTreeSet<String> {
    let list = server.cli(&["CLIENT", "LIST"]);
    let of = |line: &str, field: &str| {
        let start = format!("{field}=");
        line.split(' ').find_map(|word| word.strip_prefix(&start).map(str::to_owned)).unwrap()
    };
    list.lines().filter(|line| of(line, "cmd") == last).map(|line| of(line, "id")).collect()
}

/// Reads on a runtime.
async fn read_on(runtime: &Handle, store: &Arc<dyn Store>) -> bool {
    let store = Arc::clone(store);
    runtime.spawn(async move { get(&store, "w", &meta("A")).await.is_some() }).await.unwrap()
}

/// Waits until something is so.
async fn until(so: impl Fn() -> bool) {
    timeout(PATIENCE, async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("never came to be so");
}

/// A Redis with one record, a store, and two runtimes that have connections.
async fn near() -> (RedisServer, Workers, Arc<dyn Store>) {
    let server = RedisServer::start(Options::default()).await;
    let workers = Workers::of(2).unwrap();
    let mut config = config(&server);
    config.runtimes = workers.runtimes().to_vec();
    let store: Arc<dyn Store> = Arc::new(RedisStore::connect(config).await.unwrap());
    set(&store, "w", meta("A"), rec(1, b"x")).await;
    // Scans of this runtime, calls of the two others; each begins with INFO.
    until(|| connections(&server, "info").len() == 3).await;
    // They answered; a moment later they are in use.
    tokio::time::sleep(Duration::from_millis(300)).await;
    (server, workers, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_runtime_asks_redis_by_a_connection_of_its_own_while_it_has_one() {
    let (server, workers, store) = near().await;
    assert!(store.read(&ws("w"), &[meta("A")]).await.unwrap()[0].is_some());
    let home = connections(&server, "get");
    assert_eq!(home.len(), 1);
    let [one, two] = workers.runtimes() else { panic!("two workers") };
    assert!(read_on(one, &store).await);
    let with_one = connections(&server, "get");
    assert!(read_on(two, &store).await);
    assert_eq!((with_one.len(), connections(&server, "get").len()), (2, 3), "one each");
    // Without its own, a runtime asks by that of home; later by a new one.
    let near: Vec<_> = with_one.difference(&home).collect();
    server.cli(&["CLIENT", "KILL", "ID", near[0]]);
    for _ in 0..20 {
        assert!(read_on(one, &store).await);
    }
    let again = timeout(PATIENCE, async {
        loop {
            assert!(read_on(one, &store).await);
            let again = connections(&server, "get");
            if again.len() == 3 {
                return again;
            }
        }
    });
    assert!(!again.await.unwrap().contains(near[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_runtime_reads_from_a_master_that_has_become_a_replica() {
    let (server, workers, store) = near().await;
    for runtime in workers.runtimes() {
        assert!(read_on(runtime, &store).await);
    }
    // Port 1 of loopback: nobody listens there.
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    assert!(store.health().await.is_err());
    for runtime in workers.runtimes() {
        let store = Arc::clone(&store);
        let read = async move { store.read(&ws("w"), &[meta("A")]).await.is_ok() };
        assert!(!runtime.spawn(read).await.unwrap(), "what it has may be stale");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_not_used_that_is_older_than_the_main_one() {
    let (server, workers, store) = near().await;
    assert!(store.read(&ws("w"), &[meta("A")]).await.unwrap()[0].is_some());
    let main = connections(&server, "get");
    let one = &workers.runtimes()[0];
    assert!(read_on(one, &store).await);
    let old: BTreeSet<_> = connections(&server, "get").difference(&main).cloned().collect();
    assert_eq!((main.len(), old.len()), (1, 1));
    // The address may lead elsewhere since.
    server.cli(&["CLIENT", "KILL", "ID", main.first().unwrap()]);
    until(|| connections(&server, "get").is_disjoint(&main)).await;
    assert!(store.read(&ws("w"), &[meta("A")]).await.unwrap()[0].is_some());
    assert!(read_on(one, &store).await);
    until(|| !server.cli(&["CLIENT", "LIST"]).contains(&format!("id={} ", old.first().unwrap())))
        .await;
    assert!(read_on(one, &store).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_probe_keeps_each_connection_in_use() {
    let (server, _workers, store) = near().await;
    assert_eq!(store.health().await, Ok(()));
    assert_eq!(connections(&server, "del").len(), 4, "calls, scans, and one of each runtime");
}
