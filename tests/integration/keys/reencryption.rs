//! ReencryptWorkspace.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::task::JoinSet;
use tonic::Code;
use workflow_secrets::{
    domain::{RequestId, Revision, WorkspaceId},
    grpc::proto::{
        DataKeyFate, ReencryptWorkspaceRequest, ReencryptWorkspaceResponse, RotateDataKeyRequest,
    },
    service::{Error, KeyFate, ReencryptFailure},
    store::{
        Batch, Commit, Key, Operation, Record, Shredded, Store, StoreError, WorkspacesCursor,
        Write, codec::StoredKey,
    },
};

use super::{
    DAY, Rig, create, create_once, delete, engines, name, read, reencrypt, undelete, update, ws,
};
use crate::support::platform::{self, KeyClient, Platform, assert_refused, reason, with};

#[tokio::test]
async fn all_values_get_the_active_key_and_the_retired_ones_are_destroyed() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        for number in 0..50 {
            create(&rig.secrets, &format!("N{number}"), "first").await.unwrap();
        }
        rig.rotate().await;
        for number in 0..50 {
            update(&rig.secrets, &format!("N{number}"), "second").await.unwrap();
        }
        let keys = rig.rotate().await.keys;
        update(&rig.secrets, "N0", "third").await.unwrap();
        let metadata =
            || async { rig.store.scan(&ws(), Key::METADATA, None, 100).await.unwrap().into_iter() };
        let before: Vec<_> = metadata().await.collect();

        // Within a day of their retirement, the keys stay for request ids.
        let report = reencrypt(&rig.secrets, false).await.unwrap();
        assert_eq!((report.values, report.verified, report.moved), (101, 101, 100));
        assert_eq!((report.pass, report.failed, report.done), (2, 0, true));
        const KEPT: Duration = Duration::from_secs(25 * 60 * 60);
        let remembered = |key: &StoredKey| {
            let until = key.retire_time.unwrap().checked_add(KEPT).unwrap();
            (key.wrapped.id, KeyFate::Remembered(until))
        };
        let [_, second, first] = keys.as_slice() else { panic!("three keys") };
        let both = BTreeMap::from([remembered(first), remembered(second)]);
        assert_eq!(BTreeMap::from_iter(report.keys), both);
        // The first was retired a nanosecond before the second.
        rig.clock.advance(KEPT - Duration::from_nanos(1));
        let report = reencrypt(&rig.secrets, false).await.unwrap();
        assert_eq!((report.pass, report.moved), (1, 0));
        let fates = BTreeMap::from([(first.wrapped.id, KeyFate::Destroyed), remembered(second)]);
        assert_eq!(BTreeMap::from_iter(report.keys), fates);
        rig.clock.advance(Duration::from_nanos(1));
        let report = reencrypt(&rig.secrets, false).await.unwrap();
        assert_eq!(report.keys, [(second.wrapped.id, KeyFate::Destroyed)]);
        assert!(rig.keys().await.keys == keys[..1]);

        // Of all this nothing shows: neither etags nor versions have changed.
        assert!(metadata().await.eq(before));
        let fresh = rig.replica(rig.store.clone());
        for number in 1..50 {
            let name = format!("N{number}");
            assert_eq!(read(&fresh, &name, None).await.as_deref(), Ok("second"));
            assert_eq!(read(&fresh, &name, Some(1)).await.as_deref(), Ok("first"));
        }
        assert_eq!(read(&fresh, "N0", None).await.as_deref(), Ok("third"));
        assert_eq!(read(&fresh, "N0", Some(2)).await.as_deref(), Ok("second"));
    }
}

#[tokio::test]
async fn a_request_whose_key_is_gone_is_refused_and_not_done_twice() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        create_once(&rig.secrets, "KEY", "value", Some("r-1")).await.unwrap();
        rig.rotate().await;
        reencrypt(&rig.secrets, false).await.unwrap();
        let fresh = rig.replica(rig.store.clone());
        create_once(&fresh, "KEY", "value", Some("r-1")).await.unwrap();
        let report = reencrypt(&rig.secrets, true).await.unwrap();
        assert_eq!(report.keys[0].1, KeyFate::Destroyed);
        let fresh = rig.replica(rig.store.clone());
        let again = create_once(&fresh, "KEY", "value", Some("r-1")).await;
        assert_eq!(again, Err(Error::RequestIdReused));
        assert_eq!(read(&fresh, "KEY", None).await.as_deref(), Ok("value"));
    }
}

/// Puts a record, past all that the service does.
async fn put(rig: &Rig, key: Key, record: Record) {
    let operation = Operation { key, expect: None, write: Write::Put(record) };
    let batch = Batch { operations: vec![operation], ..Batch::default() };
    drop(rig.store.commit(&ws(), batch).await.unwrap());
}

#[tokio::test]
async fn a_value_that_does_not_open_keeps_its_key_and_holds_nothing_else_up() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        for number in 0..5 {
            create(&rig.secrets, &format!("N{number}"), "value").await.unwrap();
        }
        let first = rig.rotate().await.keys.remove(1);
        create(&rig.secrets, "LATER", "value").await.unwrap();
        let second = rig.rotate().await.keys.remove(1);
        rig.clock.advance(2 * DAY);
        let at = Key::value(&name("N3"));
        let good = rig.store.read(&ws(), std::slice::from_ref(&at)).await.unwrap().remove(0);
        let mut broken = good.clone().unwrap();
        *broken.bytes.last_mut().unwrap() ^= 1;
        put(&rig, at.clone(), broken).await;

        let report = reencrypt(&rig.secrets, true).await.unwrap();
        let failure = |version| ReencryptFailure {
            name: Some(name("N3")),
            version,
            reason: "RECORD_CORRUPT",
        };
        assert_eq!(report.failures, [failure(1)]);
        assert_eq!((report.verified, report.failed), (5, 1));
        let fates = BTreeMap::from_iter(report.keys);
        assert_eq!(fates[&first.wrapped.id], KeyFate::Needed);
        assert_eq!(fates[&second.wrapped.id], KeyFate::Destroyed);

        // What cannot be read at all may need any key.
        let third = rig.rotate().await.keys.remove(1);
        rig.clock.advance(2 * DAY);
        let told_by = Key::metadata(&name("N3"));
        let metadata =
            rig.store.read(&ws(), std::slice::from_ref(&told_by)).await.unwrap().remove(0);
        let Record { revision, .. } = metadata.clone().unwrap();
        put(&rig, told_by.clone(), Record { revision, bytes: b"?".to_vec() }).await;
        let report = reencrypt(&rig.secrets, true).await.unwrap();
        assert_eq!((report.failures, report.moved), (vec![failure(0)], 5));
        assert_eq!(report.keys.len(), 2);
        assert!(report.keys.iter().all(|(_, fate)| *fate == KeyFate::Needed));
        put(&rig, told_by, metadata.unwrap()).await;
        let report = reencrypt(&rig.secrets, true).await.unwrap();
        let fates = BTreeMap::from_iter(report.keys);
        assert_eq!(fates[&first.wrapped.id], KeyFate::Needed);
        assert_eq!(fates[&third.wrapped.id], KeyFate::Destroyed);

        // Restored, it opens, and is moved.
        put(&rig, at, good.unwrap()).await;
        let report = reencrypt(&rig.secrets, false).await.unwrap();
        assert_eq!((report.moved, report.verified, report.failed), (1, 6, 0));
        assert_eq!(report.keys, [(first.wrapped.id, KeyFate::Destroyed)]);
        assert_eq!(read(&rig.secrets, "N3", None).await.as_deref(), Ok("value"));
    }
}

/// The mark of a retired key.
async fn mark(rig: &Rig, key: &StoredKey) -> Option<Revision> {
    let at = Key::moved(key.wrapped.id);
    rig.store.read(&ws(), &[at]).await.unwrap().remove(0).map(|record| record.revision)
}

#[tokio::test]
async fn a_value_moved_as_it_is_leaves_the_mark_of_its_key() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        for name in ["A", "B", "C"] {
            create(&rig.secrets, name, "first").await.unwrap();
        }
        let first = rig.rotate().await.keys.remove(1);
        let mut seen = vec![mark(&rig, &first).await];
        assert_eq!(seen, [None]);
        // New values that leave the old ones behind, deletion and its undoing.
        update(&rig.secrets, "A", "second").await.unwrap();
        seen.push(mark(&rig, &first).await);
        update(&rig.secrets, "B", "second").await.unwrap();
        seen.push(mark(&rig, &first).await);
        delete(&rig.secrets, "C").await;
        seen.push(mark(&rig, &first).await);
        undelete(&rig.secrets, "C").await;
        seen.push(mark(&rig, &first).await);
        let distinct: std::collections::HashSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), 5, "{seen:?}");
        // What is sealed with the active key needs none.
        create(&rig.secrets, "D", "first").await.unwrap();
        update(&rig.secrets, "D", "second").await.unwrap();
        delete(&rig.secrets, "D").await;
        undelete(&rig.secrets, "D").await;
        assert_eq!(Some(&mark(&rig, &first).await), seen.last());
        // It goes with the key.
        reencrypt(&rig.secrets, true).await.unwrap();
        assert_eq!((mark(&rig, &first).await, rig.retired(&first).await.is_none()), (None, true));
        assert_eq!(read(&rig.secrets, "A", Some(1)).await.as_deref(), Ok("first"));
        assert_eq!(read(&rig.secrets, "C", None).await.as_deref(), Ok("first"));
    }
}

/// The earlier versions of a secret that goes to and fro may be seen by no look.
#[tokio::test]
async fn a_secret_with_versions_that_goes_or_comes_back_leaves_a_mark() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        let mark = async || rig.store.read(&ws(), &[Key::retold()]).await.unwrap().remove(0);
        create(&rig.secrets, "PLAIN", "value").await.unwrap();
        create(&rig.secrets, "KEY", "first").await.unwrap();
        rig.rotate().await;
        update(&rig.secrets, "KEY", "second").await.unwrap();
        delete(&rig.secrets, "PLAIN").await;
        assert!(mark().await.is_none());
        delete(&rig.secrets, "KEY").await;
        let gone = mark().await.unwrap();
        undelete(&rig.secrets, "KEY").await;
        assert!(mark().await.unwrap() != gone);
        let report = reencrypt(&rig.secrets, true).await.unwrap();
        assert_eq!(report.keys[0].1, KeyFate::Destroyed);
        assert_eq!(read(&rig.secrets, "KEY", Some(1)).await.as_deref(), Ok("first"));
    }
}

/// A value is moved, it seems, between each look and the end of its key.
#[tokio::test]
async fn a_key_that_was_marked_since_the_look_is_looked_for_again() {
    for (store, _keep) in engines().await {
        let marking = Arc::new(Marking { store, times: AtomicUsize::new(3) });
        let rig = Rig::new(marking);
        create(&rig.secrets, "KEY", "value").await.unwrap();
        let first = rig.rotate().await.keys.remove(1);
        let report = reencrypt(&rig.secrets, true).await.unwrap();
        assert_eq!((report.pass, report.keys[0].1), (5, KeyFate::Destroyed));
        assert!(rig.retired(&first).await.is_none());
    }
}

/// Just before a retired key is destroyed, so many times, its mark is written.
struct Marking {
    store: Arc<dyn Store>,
    times: AtomicUsize,
}

#[async_trait]
impl Store for Marking {
    async fn read_at(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<(Option<Revision>, Vec<Option<Record>>), StoreError> {
        self.store.read_at(workspace, keys).await
    }

    async fn commit_at(
        &self,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(Commit, Option<Revision>), StoreError> {
        let destroys =
            |one: &&Operation| one.key.as_str().starts_with("p/") && one.write == Write::Delete;
        let again = |left: usize| left.checked_sub(1);
        if let Some(Operation { key, .. }) = batch.operations.iter().find(destroys)
            && self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, again).is_ok()
        {
            let mark = Record { revision: Revision::initial(), bytes: vec![] };
            let mark = Operation { key: key.clone(), expect: None, write: Write::Put(mark) };
            let mark = Batch { operations: vec![mark], ..Batch::default() };
            assert!(self.store.commit(workspace, mark).await? == Commit::Done);
        }
        self.store.commit_at(workspace, batch).await
    }

    async fn shred(
        &self,
        workspace: &WorkspaceId,
        tombstone: Record,
    ) -> Result<Shredded, StoreError> {
        self.store.shred(workspace, tombstone).await
    }

    async fn revision(&self, workspace: &WorkspaceId) -> Result<Option<Revision>, StoreError> {
        self.store.revision(workspace).await
    }

    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.request(workspace, id).await
    }

    async fn scan(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        self.store.scan(workspace, prefix, after, limit).await
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError> {
        self.store.keys(workspace, prefix, limit).await
    }

    async fn workspaces(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError> {
        self.store.workspaces(cursor).await
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.store.health().await
    }
}

fn request(forget_requests: bool) -> ReencryptWorkspaceRequest {
    ReencryptWorkspaceRequest { workspace: "ws".into(), forget_requests }
}

async fn report(
    client: &mut KeyClient,
    forget_requests: bool,
) -> Result<ReencryptWorkspaceResponse, tonic::Status> {
    let mut steps = client.reencrypt_workspace(request(forget_requests)).await?.into_inner();
    let mut last = None;
    while let Some(step) = steps.message().await? {
        last = Some(step);
    }
    Ok(last.expect("a report"))
}

async fn rotate(client: &mut KeyClient) {
    let request = RotateDataKeyRequest { workspace: "ws".into(), data_key_id: String::new() };
    client.rotate_data_key(request).await.unwrap();
}

/// Writers on two replicas, while keys are rotated and all is re-encrypted over
/// and over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_win_and_lose_nothing() {
    const WRITERS: usize = 4;
    let platform = Platform::start().await;
    let replicas = [platform.replica().await, platform.replica().await];
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mut client = platform.client(&replicas[writer % 2], "platform").await;
        for number in 0..10 {
            let request = platform::create("ws", &format!("W{writer}_{number}"), "value-1");
            client.create_secret(request).await.unwrap();
        }
        let stop = stop.clone();
        writers.spawn(async move {
            let mut versions = [1_u64; 10];
            for number in (0..10).cycle() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let next = versions[number] + 1;
                let request = with(platform::update("ws", &format!("W{writer}_{number}")), |r| {
                    r.value = Some(format!("value-{next}"));
                });
                let answer = client.update_secret(request).await.unwrap().into_inner();
                assert_eq!(answer.version, next, "each is done once");
                versions[number] = next;
            }
            (writer, versions)
        });
    }
    let mut operator = platform.key_client(&replicas[0], "operator").await;
    let mut moved = 0;
    for _ in 0..5 {
        rotate(&mut operator).await;
        let report = report(&mut operator, true).await.unwrap();
        assert_eq!((report.failed, report.done), (0, true), "{report:?}");
        moved += report.moved;
    }
    stop.store(true, Ordering::SeqCst);
    assert!(moved > 50, "{moved}: there was little to move");
    let written = writers.join_all().await;
    let last = report(&mut operator, true).await.unwrap();
    assert_eq!(last.failed, 0);
    let fates: Vec<_> = last.retired_keys.iter().map(|key| key.fate()).collect();
    assert!(fates.iter().all(|fate| *fate == DataKeyFate::Destroyed));

    // All that was acknowledged is there, for a replica that has just started.
    let fresh = platform.replica().await;
    let mut reader = platform.client(&fresh, "executor").await;
    for (writer, versions) in written {
        for (number, version) in versions.into_iter().enumerate() {
            for version in version.saturating_sub(10).max(1)..=version {
                let request =
                    with(platform::resolve("ws", &[&format!("W{writer}_{number}=k")]), |r| {
                        r.credentials[0].version = version;
                    });
                let answer = reader.resolve_secrets(request).await.unwrap().into_inner();
                assert_eq!(platform::value(&answer, "k"), format!("value-{version}"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_and_a_client_that_leaves_cost_nothing() {
    let platform = Platform::start().await;
    let (mut one, two) = (platform.replica().await, platform.replica().await);
    let mut writer = platform.client(&two, "platform").await;
    for number in 0..400 {
        let name = format!("N{number:03}");
        writer.create_secret(platform::create("ws", &name, &name)).await.unwrap();
    }
    let mut operator = platform.key_client(&one, "operator").await;
    rotate(&mut operator).await;
    let mut steps = operator.reencrypt_workspace(request(true)).await.unwrap().into_inner();
    let step = steps.message().await.unwrap().unwrap();
    assert!(step.moved > 0 && !step.done);
    one.kill9();
    while let Ok(Some(step)) = steps.message().await {
        assert!(!step.done, "killed too late");
    }

    let mut operator = platform.key_client(&two, "operator").await;
    // A client that leaves ends it at the next step, which the audit tells.
    let mut steps = operator.reencrypt_workspace(request(true)).await.unwrap().into_inner();
    steps.message().await.unwrap().unwrap();
    drop(steps);
    let cancelled = || {
        let lines = two.audit();
        let outcomes = lines.iter().filter(|line| line["action"] == "reencrypt");
        outcomes.map(|line| line["outcome"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let start = std::time::Instant::now();
    while cancelled().len() < 2 {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cancelled()[0], "started");
    assert!(["CANCELLED", "ok"].contains(&cancelled()[1].as_str()));

    let mut reader = platform.client(&two, "executor").await;
    let names: Vec<_> = (0..400).map(|number| format!("N{number:03}")).collect();
    let readable = async |reader: &mut platform::Client| {
        for names in names.chunks(100) {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let answer = reader.resolve_secrets(platform::resolve("ws", &names)).await.unwrap();
            let answer = answer.into_inner();
            assert!(names.iter().all(|name| platform::value(&answer, name) == *name));
        }
    };
    readable(&mut reader).await;
    let last = report(&mut operator, true).await.unwrap();
    assert_eq!((last.verified, last.failed, last.done), (400, 0, true));
    readable(&mut reader).await;

    // On a replica that ends, it says so and can be run elsewhere.
    rotate(&mut operator).await;
    let mut steps = operator.reencrypt_workspace(request(true)).await.unwrap().into_inner();
    steps.message().await.unwrap().unwrap();
    two.terminate();
    let ended = loop {
        match steps.message().await {
            Ok(Some(step)) if step.done => break None,
            Ok(Some(_)) => {}
            Ok(None) => panic!("no report"),
            Err(status) => break Some(status),
        }
    };
    if let Some(status) = ended {
        assert_eq!(reason(&status), (Code::Unavailable, "SHUTTING_DOWN".to_owned()));
    }
}

#[tokio::test]
async fn it_is_for_operators_and_for_workspaces_that_are() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    for caller in ["executor", "platform", "sheets", "stranger"] {
        let mut client = platform.key_client(&replica, caller).await;
        let outcome = client.reencrypt_workspace(request(false)).await;
        assert_refused(outcome, Code::PermissionDenied, "NOT_GRANTED");
    }
    let mut operator = platform.key_client(&replica, "operator").await;
    let empty = report(&mut operator, false).await.unwrap();
    assert_eq!((empty.values, empty.pass, empty.done), (0, 1, true));
    let shred = workflow_secrets::grpc::proto::ShredWorkspaceRequest {
        workspace: "ws".into(),
        confirm: "ws".into(),
    };
    operator.shred_workspace(shred).await.unwrap();
    let status = report(&mut operator, false).await.unwrap_err();
    assert_eq!(reason(&status), (Code::FailedPrecondition, "WORKSPACE_SHREDDED".to_owned()));
}
