//! The embedded engine: the behaviour suite and what is its own.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use workflow_secrets::{
    domain::{Clock, SecretName, SystemClock, Timestamp},
    store::{
        Batch, Expect, Key, Quota, Store,
        embedded::{EmbeddedStore, OpenError},
    },
};

use crate::{
    store_suite::suite,
    support::store::{batch, get, meta, put, rec, request, run, set, ws},
};

async fn fresh() -> (Arc<dyn Store>, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (open(&directory), directory)
}

fn open(directory: &TempDir) -> Arc<dyn Store> {
    let path = directory.path().join("store.redb");
    Arc::new(EmbeddedStore::open(&path, Arc::new(SystemClock::default())).unwrap())
}

suite!(fresh);

fn refusal(path: &Path) -> OpenError {
    EmbeddedStore::open(path, Arc::new(SystemClock::default())).err().unwrap()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_file_of_the_first_release_is_counted() {
    let (store, directory) = fresh().await;
    for (workspace, name) in [("w", "A"), ("w", "B"), ("w2", "A")] {
        set(&store, workspace, meta(name), rec(1, b"1")).await;
        let value = Key::value(&SecretName::parse(name).unwrap());
        set(&store, workspace, value, rec(1, b"1")).await;
    }
    drop(store);
    let database = redb::Database::open(directory.path().join("store.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let counts = redb::TableDefinition::<(&str, &str), u64>::new("counts");
    assert!(transaction.delete_table(counts).unwrap());
    transaction.commit().unwrap();
    drop(database);

    let store = open(&directory);
    let limited = |max, operation| Batch {
        quota: Some(Quota { kind: Key::METADATA, max }),
        ..batch([operation])
    };
    let third = || put(meta("C"), None, rec(1, b"1"));
    assert_eq!(run(&store, "w", limited(2, third())).await, "full");
    assert_eq!(run(&store, "w2", limited(2, third())).await, "done");
    assert_eq!(run(&store, "w2", limited(2, put(meta("D"), None, rec(1, b"1")))).await, "full");
    assert_eq!(run(&store, "w", limited(3, third())).await, "done");
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let (store, directory) = fresh().await;
    set(&store, "w", meta("A"), rec(5, b"kept")).await;
    let remember = Batch { request: Some((request("r"), b"o".to_vec())), ..Batch::default() };
    assert_eq!(run(&store, "w", remember.clone()).await, "done");
    // As it would be found after kill -9: copied while open.
    let copy = tempfile::tempdir().unwrap();
    let name = "store.redb";
    fs::copy(directory.path().join(name), copy.path().join(name)).unwrap();
    drop(store);
    for directory in [directory, copy] {
        let store = open(&directory);
        assert!(get(&store, "w", &meta("A")).await == Some(rec(5, b"kept")));
        assert_eq!(run(&store, "w", remember.clone()).await, "replayed o");
    }
}

/// The test runs itself as another process, told by this variable where to
/// write, and ends it in the middle.
const STORM: &str = "STORE_EMBEDDED_STORM";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_outlive_kill_9() {
    if let Ok(path) = std::env::var(STORM) {
        let store = EmbeddedStore::open(Path::new(&path), Arc::new(SystemClock::default()));
        let store: Arc<dyn Store> = Arc::new(store.unwrap());
        for number in 0_u64.. {
            let pair = ["A", "B"].map(|n| put(meta(&format!("{n}{number}")), None, rec(1, b"x")));
            assert_eq!(run(&store, "w", batch(pair)).await, "done");
            println!("\nacknowledged {number}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store_embedded::acknowledged_writes_outlive_kill_9", "--nocapture"])
        .env(STORM, directory.path().join("store.redb"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut acknowledged = lines.by_ref().filter(|line| line.starts_with("acknowledged"));
    assert_eq!(acknowledged.nth(200).as_deref(), Some("acknowledged 200"));
    child.kill().unwrap();
    let acknowledged = 201 + acknowledged.count();
    child.wait().unwrap();

    let store = open(&directory);
    let all = store.scan(&ws("w"), "m/A", None, usize::MAX).await.unwrap().len();
    assert!((acknowledged..=acknowledged + 1).contains(&all), "{all} of {acknowledged}");
    for number in 0..all {
        for name in ["A", "B"] {
            assert!(get(&store, "w", &meta(&format!("{name}{number}"))).await.is_some());
        }
    }
    assert_eq!(store.scan(&ws("w"), "m/B", None, usize::MAX).await.unwrap().len(), all);
    set(&store, "w", meta("A"), rec(1, b"x")).await;
}

#[tokio::test]
async fn the_file_is_for_its_owner_and_one_process() {
    let (store, directory) = fresh().await;
    let path = directory.path().join("store.redb");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(refusal(&path), OpenError::InUse);
    drop(store);
    for mode in [0o640, 0o604, 0o620, 0o602] {
        chmod(&path, mode);
        assert!(matches!(refusal(&path), OpenError::Unsafe(_)), "{mode:o}");
    }
    chmod(&path, 0o600);
    drop(open(&directory));
    for mode in [0o770, 0o707, 0o1777] {
        chmod(directory.path(), mode);
        assert!(matches!(refusal(&path), OpenError::Unsafe(_)), "{mode:o}");
    }
    chmod(directory.path(), 0o700);
    let link = directory.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(matches!(refusal(&link), OpenError::Unsafe(_)));
    assert!(matches!(refusal(directory.path()), OpenError::Unsafe(_)));
    let nowhere = directory.path().join("missing").join("store.redb");
    assert_eq!(refusal(&nowhere), OpenError::Io(std::io::ErrorKind::NotFound));
}

#[tokio::test]
async fn a_foreign_file_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    fs::write(&path, b"something else entirely").unwrap();
    chmod(&path, 0o600);
    assert_eq!(refusal(&path), OpenError::Malformed);
    assert_eq!(fs::read(&path).unwrap(), b"something else entirely");
}

struct TurnedClock(AtomicI64);

impl Clock for TurnedClock {
    fn now(&self) -> Timestamp {
        Timestamp::new(self.0.load(Ordering::SeqCst), 0).unwrap()
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

#[tokio::test]
async fn request_ids_are_forgotten_after_24_hours() {
    const START: i64 = 1_800_000_000;
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(TurnedClock(AtomicI64::new(START)));
    let path = directory.path().join("store.redb");
    let store: Arc<dyn Store> =
        Arc::new(EmbeddedStore::open(&path, Arc::clone(&clock) as _).unwrap());
    let create = |id: &str, outcome: &str| Batch {
        request: Some((request(id), outcome.as_bytes().to_vec())),
        ..batch([put(meta("A"), None, rec(1, b"1"))])
    };
    for number in 0..40 {
        assert_eq!(run(&store, "w", create(&format!("r{number}"), "old")).await, "done");
    }
    clock.0.store(START + 86_399, Ordering::SeqCst);
    assert_eq!(run(&store, "w", create("r0", "new")).await, "replayed old");
    clock.0.store(START + 86_400, Ordering::SeqCst);
    assert!(store.request(&ws("w"), &request("r39")).await.unwrap().is_none());
    // Used anew before and after it was cleared away.
    for number in [39, 0, 20] {
        assert_eq!(run(&store, "w", create(&format!("r{number}"), "new")).await, "done");
    }
    // Clearing the old ones away must not take the new ones along.
    for _ in 0..5 {
        let touch = batch([put(meta("A"), None, rec(1, b"1"))]);
        assert_eq!(run(&store, "w", touch).await, "done");
    }
    for number in [39, 0, 20] {
        assert_eq!(run(&store, "w", create(&format!("r{number}"), "x")).await, "replayed new");
    }
}

#[tokio::test]
async fn expired_request_ids_leave_the_file() {
    const START: i64 = 1_800_000_000;
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(TurnedClock(AtomicI64::new(START)));
    let path = directory.path().join("store.redb");
    let store = EmbeddedStore::open(&path, Arc::clone(&clock) as _).unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    let outcome = vec![b'o'; 50_000];
    for day in 0..8 {
        clock.0.store(START + day * 86_400, Ordering::SeqCst);
        for number in 0..16 {
            let id = request(&format!("d{day}-{number}"));
            let remember = Batch { request: Some((id, outcome.clone())), ..Batch::default() };
            assert_eq!(run(&store, "w", remember).await, "done");
        }
    }
    // Kept, they would be 6.4 MB; redb's file has room to spare for the rest.
    drop(store);
    let mut database = redb::Database::open(&path).unwrap();
    database.compact().unwrap();
    drop(database);
    assert!(fs::metadata(&path).unwrap().len() < 4_000_000);
}

#[tokio::test]
async fn a_failed_expectation_leaves_no_trace_after_reopening() {
    let (store, directory) = fresh().await;
    let change = batch([
        put(meta("A"), None, rec(1, b"1")),
        put(
            meta("B"),
            Some(Expect::Revision(workflow_secrets::domain::Revision::from_u64(1))),
            rec(1, b"1"),
        ),
    ]);
    assert_eq!(run(&store, "w", change).await, "conflict m/B");
    drop(store);
    assert!(get(&open(&directory), "w", &meta("A")).await.is_none());
}
