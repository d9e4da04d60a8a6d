//! The Redis engine: the behaviour suite and what is its own.

use std::sync::Arc;

use workflow_secrets::store::{
    Batch, Commit, Key, Store, StoreError, Trail,
    redis::{KeyPrefix, Password, RedisConfig, RedisStore, RedisUrl},
};

use crate::{
    store_suite::suite,
    support::{
        redis_server::{Options, RedisServer},
        store::{at, batch, delete, get, meta, put, rec, request, run, set, word, ws},
    },
};

pub(crate) fn config(server: &RedisServer) -> RedisConfig {
    RedisConfig::new(RedisUrl::parse(&server.url()).unwrap())
}

pub(crate) async fn connect(server: &RedisServer) -> Arc<dyn Store> {
    Arc::new(RedisStore::connect(config(server)).await.unwrap())
}

async fn fresh() -> (Arc<dyn Store>, RedisServer) {
    let server = RedisServer::start(Options::default()).await;
    (connect(&server).await, server)
}

suite!(fresh);

#[tokio::test]
async fn two_hundred_records_are_one_hmget() {
    let (store, server) = fresh().await;
    let keys: Vec<_> = (0..250).map(|number| meta(&format!("N{number}"))).collect();
    for key in &keys {
        set(&store, "w", key.clone(), rec(1, b"x")).await;
    }
    let commands = || -> u64 {
        let stats = server.cli(&["INFO", "stats"]);
        let line = stats.lines().find_map(|l| l.strip_prefix("total_commands_processed:"));
        line.unwrap().trim().parse().unwrap()
    };
    let (calls, before) = (server.calls("hmget"), commands());
    let found = store.read(&ws("w"), &keys).await.unwrap();
    let after = commands();
    assert!(found.iter().all(Option::is_some));
    assert_eq!(server.calls("hmget") - calls, 1);
    // HMGET, GET of the revision and the first INFO; the second does not yet
    // count itself.
    assert_eq!(after - before, 3);
}

#[tokio::test]
async fn keys_have_the_documented_layout() {
    let server = RedisServer::start(Options::default()).await;
    let mut config = config(&server);
    config.prefix = KeyPrefix::parse("prod:a").unwrap();
    let store: Arc<dyn Store> = Arc::new(RedisStore::connect(config).await.unwrap());
    let create = Batch {
        request: Some((request("r:1"), b"outcome".to_vec())),
        ..batch([put(meta("A"), None, rec(0x0102_0304_0506_0708, b"bytes"))])
    };
    assert_eq!(run(&store, "w", create).await, "done");
    let keys = || {
        let mut keys: Vec<_> = server.cli(&["KEYS", "*"]).lines().map(str::to_owned).collect();
        keys.sort();
        keys
    };
    let (request, revision) = ("prod:a:{w}:request:r:1", "prod:a:{w}:revision");
    assert_eq!(keys(), ["prod:a:{w}:index", "prod:a:{w}:records", request, revision]);
    let number = store.revision(&ws("w")).await.unwrap().unwrap();
    assert_eq!(server.cli(&["GET", revision]), number.as_u64().to_string());
    let stored = server.cli(&["HGET", "prod:a:{w}:records", "m/A"]);
    assert_eq!(stored, "\u{1}\u{2}\u{3}\u{4}\u{5}\u{6}\u{7}\u{8}bytes");
    let index = server.cli(&["ZRANGE", "prod:a:{w}:index", "0", "-1", "WITHSCORES"]);
    assert_eq!(index, "m/A\n0");

    let left: i64 = server.cli(&["PTTL", "prod:a:{w}:request:r:1"]).parse().unwrap();
    let day = 24 * 60 * 60 * 1_000;
    assert!((day - 60_000..=day).contains(&left), "{left}");

    // Another deployment on the same Redis sees nothing of it.
    let other = connect(&server).await;
    assert!(get(&other, "w", &meta("A")).await.is_none());
    assert!(other.workspaces(None).await.unwrap().0.is_empty());
    assert_eq!(store.workspaces(None).await.unwrap().0, [ws("w")]);
    assert_eq!(run(&store, "w", batch([delete(meta("A"), None)])).await, "done");
    assert_eq!(keys(), [request, revision]);
}

#[tokio::test]
async fn forgotten_scripts_are_sent_again() {
    let (store, server) = fresh().await;
    for _ in 0..2 {
        server.cli(&["SCRIPT", "FLUSH"]);
        set(&store, "w", meta("A"), rec(1, b"x")).await;
        server.cli(&["SCRIPT", "FLUSH"]);
        assert_eq!(store.scan(&ws("w"), "", None, 9).await.unwrap().len(), 1);
    }
    assert_eq!(server.calls("eval"), 4);
    set(&store, "w", meta("A"), rec(1, b"x")).await;
    set(&store, "w", meta("A"), rec(1, b"x")).await;
    // Only the first is sent whole: SCAN's script was the last to be flushed.
    assert_eq!(server.calls("eval"), 5);
}

#[tokio::test]
async fn full_memory_stops_writes_and_lets_deletions_through() {
    let server = RedisServer::start(Options::default().memory("0", "noeviction")).await;
    let store = connect(&server).await;
    for name in ["A", "B"] {
        set(&store, "w", meta(name), rec(1, &[7; 1_000])).await;
    }
    // Any use is above the limit from now on.
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let before = server.digest();
    let with_request = |id: &str, mut batch: Batch| {
        batch.request = Some((request(id), b"o".to_vec()));
        batch
    };
    for change in [
        batch([put(meta("C"), None, rec(1, b"x"))]),
        batch([put(meta("A"), at(1), rec(2, b"x"))]),
        batch([delete(meta("A"), at(1)), put(meta("C"), None, rec(1, b"x"))]),
        with_request("r1", batch([put(meta("C"), None, rec(1, b"x"))])),
    ] {
        assert_eq!(store.commit(&ws("w"), change).await.err(), Some(StoreError::Full));
    }
    assert_eq!(server.digest(), before, "something was written");
    assert_eq!(store.health().await, Ok(()));
    assert_eq!(store.read(&ws("w"), &[meta("A")]).await.unwrap().len(), 1);
    assert_eq!(store.scan(&ws("w"), "", None, 9).await.unwrap().len(), 2);
    let deletion = with_request("r2", batch([delete(meta("A"), at(1)), delete(meta("X"), None)]));
    assert_eq!(run(&store, "w", deletion.clone()).await, "done");
    assert_eq!(run(&store, "w", deletion).await, "replayed o");
    assert!(get(&store, "w", &meta("A")).await.is_none());
    // What tells of a deletion does not stand in its way, and comes alone no
    // more than anything else.
    let trail = || Some(Trail { entry: b"e".to_vec(), keep: 9 });
    let alone = Batch { trail: trail(), ..Batch::default() };
    assert_eq!(store.commit(&ws("w"), alone).await.err(), Some(StoreError::Full));
    let told = Batch { trail: trail(), ..batch([delete(meta("B"), at(1))]) };
    assert_eq!(run(&store, "w", told).await, "done");
    assert_eq!(store.scan(&ws("w"), "", None, 9).await.unwrap().len(), 1);
    // So is room made where it is needed most.
    assert_eq!(store.shred(&ws("w"), rec(1, b"t")).await.map(|done| done.records), Ok(1));
    assert_eq!(store.shred(&ws("w"), rec(1, b"t")).await.map(|done| done.records), Ok(0));
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    set(&store, "w2", meta("C"), rec(1, b"x")).await;
}

#[tokio::test]
async fn foreign_types_are_malformed_and_nothing_is_written() {
    for (key, value) in
        [("records", ["SET", "x"]), ("index", ["SET", "x"]), ("request:r", ["LPUSH", "x"])]
    {
        let (store, server) = fresh().await;
        server.cli(&[value[0], &format!("workflow-secrets:{{w}}:{key}"), value[1]]);
        let before = server.digest();
        let change = Batch {
            request: Some((request("r"), b"o".to_vec())),
            ..batch([put(meta("A"), None, rec(1, b"x"))])
        };
        let failed = store.commit(&ws("w"), change).await.map(|commit| word(&commit));
        assert!(matches!(failed, Err(StoreError::Malformed(_))), "{key}: {failed:?}");
        assert_eq!(server.digest(), before, "{key}");
        // The connection is as good as before.
        set(&store, "w2", meta("A"), rec(1, b"x")).await;
    }
}

/// The revision is counted at the end of a commit, when it is too late to fail.
#[tokio::test]
async fn a_revision_that_cannot_be_counted_on_is_malformed_and_nothing_is_written() {
    for value in ["x", "", "1e5", "0x10", " 7", "007", "7.0", "-7", "9007199254740991"] {
        let (store, server) = fresh().await;
        server.cli(&["SET", "workflow-secrets:{w}:revision", value]);
        let before = server.digest();
        let change = batch([put(meta("A"), None, rec(1, b"x"))]);
        let failed = store.commit(&ws("w"), change).await.map(|commit| word(&commit));
        assert!(matches!(failed, Err(StoreError::Malformed(_))), "{value}: {failed:?}");
        assert_eq!(server.digest(), before, "{value}");
    }
}

#[tokio::test]
async fn damaged_records_are_malformed() {
    let (store, server) = fresh().await;
    set(&store, "w", meta("A"), rec(1, b"x")).await;
    let records = "workflow-secrets:{w}:records";
    server.cli(&["HSET", records, "m/A", "1234567"]);
    let malformed = |error: Option<StoreError>| matches!(error, Some(StoreError::Malformed(_)));
    assert!(malformed(store.read(&ws("w"), &[meta("A")]).await.err()));
    assert!(malformed(store.scan(&ws("w"), "", None, 9).await.err()));
    let change = batch([put(meta("A"), at(1), rec(2, b"y"))]);
    assert!(malformed(store.commit(&ws("w"), change).await.err()));
    server.cli(&["HDEL", records, "m/A"]);
    assert!(malformed(store.scan(&ws("w"), "", None, 9).await.err()));
    server.cli(&["SET", "workflow-secrets:{w3}:records", "x"]);
    assert!(malformed(store.read(&ws("w3"), &[meta("A")]).await.err()));
}

#[tokio::test]
async fn missing_rights_stop_a_commit_before_its_first_write() {
    for missing in ["-hset", "-hdel", "-zadd", "-zrem", "-set", "-incr"] {
        let rules = [">pw", "~workflow-secrets:*", "+@all", missing];
        let server = RedisServer::start(Options::default().user("app", &rules)).await;
        let admin = connect(&server).await;
        set(&admin, "w", meta("OLD"), rec(1, b"x")).await;
        let mut config = config(&server);
        config.username = Some("app".to_owned());
        config.password = Some(Arc::new(|| Ok(Password::new("pw".to_owned()))));
        let store: Arc<dyn Store> = Arc::new(RedisStore::connect(config).await.unwrap());
        let before = server.digest();
        let change = Batch {
            request: Some((request("r"), b"o".to_vec())),
            ..batch([put(meta("A"), None, rec(1, b"x")), delete(meta("OLD"), None)])
        };
        let failed = store.commit(&ws("w"), change).await.map(|commit| word(&commit));
        assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{missing}: {failed:?}");
        assert_eq!(server.digest(), before, "{missing}");
        if missing == "-hdel" || missing == "-zrem" {
            continue;
        }
        let failed = store.shred(&ws("w"), rec(1, b"t")).await.err();
        assert!(matches!(failed, Some(StoreError::Unavailable(_))), "{missing}: {failed:?}");
        assert_eq!(server.digest(), before, "{missing}");
    }
}

#[tokio::test]
async fn replicas_confirm_or_the_commit_says_so() {
    let server = RedisServer::start(Options::default()).await;
    let mut config = config(&server);
    config.min_replicas = 1;
    let store: Arc<dyn Store> = Arc::new(RedisStore::connect(config).await.unwrap());
    let create = Batch {
        request: Some((request("r"), b"o".to_vec())),
        ..batch([put(meta("A"), None, rec(1, b"x"))])
    };
    let short = Some(StoreError::NotReplicated { acknowledged: 0, demanded: 1 });
    let hasty = Batch { hasty: true, ..batch([put(meta("NOTE"), None, rec(1, b"x"))]) };
    assert!(store.commit(&ws("w"), hasty).await == Ok(Commit::Done));
    assert_eq!(store.commit(&ws("w"), create.clone()).await.err(), short);
    // It was carried out all the same, and its replay is no better.
    assert!(get(&store, "w", &meta("A")).await.is_some());
    // WAIT is only told to cover writes, so the replay is one.
    let changes = || -> u64 {
        let info = server.cli(&["INFO", "persistence"]);
        let line = info.lines().find_map(|l| l.strip_prefix("rdb_changes_since_last_save:"));
        line.unwrap().trim().parse().unwrap()
    };
    let before = changes();
    assert_eq!(store.commit(&ws("w"), create.clone()).await.err(), short);
    assert!(changes() > before);
    // What is refused needs no replica.
    let stale = batch([put(meta("A"), at(9), rec(1, b"x"))]);
    assert!(store.commit(&ws("w"), stale).await == Ok(Commit::Conflict(meta("A"))));

    let replica = RedisServer::start(Options::default().replica_of(&server)).await;
    server.replicated().await;
    assert_eq!(run(&store, "w", create).await, "replayed o");
    for number in 0..50 {
        let key = Key::metadata(
            &workflow_secrets::domain::SecretName::parse(&format!("N{number}")).unwrap(),
        );
        set(&store, "w", key.clone(), rec(1, b"x")).await;
        let there = replica.cli(&["HEXISTS", "workflow-secrets:{w}:records", key.as_str()]);
        assert_eq!(there, "1", "{key}");
    }
    let ttl: i64 = replica.cli(&["PTTL", "workflow-secrets:{w}:request:r"]).parse().unwrap();
    assert!(ttl > 0);

    let shred = async || store.shred(&ws("w"), rec(1, b"t")).await;
    assert_eq!(shred().await.map(|done| done.records), Ok(52));
    assert_eq!(replica.cli(&["HKEYS", "workflow-secrets:{w}:records"]), "t/shredded");
    drop(replica);
    // Nor is a repetition better than what it repeats.
    let before = changes();
    assert_eq!(shred().await.err(), short);
    assert!(changes() > before);
}

#[tokio::test]
async fn waiting_for_replicas_does_not_hold_reads_up() {
    let server = RedisServer::start(Options::default()).await;
    let mut config = config(&server);
    config.min_replicas = 1;
    let store: Arc<dyn Store> = Arc::new(RedisStore::connect(config).await.unwrap());
    let commits: Vec<_> = (0..4)
        .map(|number| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let key = meta(&format!("N{number}"));
                store.commit(&ws("w"), batch([put(key, None, rec(1, b"x"))])).await.err()
            })
        })
        .collect();
    // Some commit is in WAIT for as long as it takes; reads go through.
    while !commits.iter().all(tokio::task::JoinHandle::is_finished) {
        store.read(&ws("w"), &[meta("N0")]).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let (mut sent, mut kept_back) = (0_usize, 0_usize);
    for commit in commits {
        match commit.await.unwrap() {
            Some(StoreError::NotReplicated { .. }) => sent += 1,
            Some(StoreError::Unavailable("too many commits wait for replicas")) => kept_back += 1,
            // On a busy machine the answer may come too late.
            other => assert!(matches!(other, Some(StoreError::Unavailable(_))), "{other:?}"),
        }
    }
    // Those that had no turn were never sent.
    let records: usize =
        server.cli(&["HLEN", "workflow-secrets:{w}:records"]).trim().parse().unwrap();
    assert!((sent..=4 - kept_back).contains(&records), "{sent} {records} {kept_back}");
    assert!(sent >= 1);
}
