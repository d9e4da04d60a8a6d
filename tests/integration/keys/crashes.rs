//! The work on data keys is cut off at each of its commits, as by kill -9: all
//! stays readable, and a second run finishes.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use async_trait::async_trait;
use workflow_secrets::{
    domain::{RequestId, Revision, WorkspaceId},
    service::{Error, KeyFate, ShredWorkspace},
    store::{Batch, Commit, Key, Record, Shredded, Store, StoreError, WorkspacesCursor, Write},
};

use super::{
    DAY, Rig, create, delete, engines, read, reencrypt, rewrap, rotate, undelete, update, ws,
};
use crate::support::service::caller;

/// A store that is gone after some changes, for the replica that uses it.
struct Stopping {
    store: Arc<dyn Store>,
    /// Changes that it still carries out.
    left: AtomicI64,
    /// The last of them is not answered.
    silent: bool,
}

const GONE: StoreError = StoreError::Unavailable("gone");

impl Stopping {
    fn after(store: &Arc<dyn Store>, changes: i64, silent: bool) -> Arc<Self> {
        Arc::new(Self { store: store.clone(), left: AtomicI64::new(changes), silent })
    }

    fn alive(&self) -> Result<(), StoreError> {
        if self.left.load(Ordering::SeqCst) > 0 { Ok(()) } else { Err(GONE) }
    }

    /// Whether the change is carried out, and whether it is answered.
    fn change(&self) -> (bool, bool) {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        (left > 0, left > 1 || (left == 1 && !self.silent))
    }
}

#[async_trait]
impl Store for Stopping {
    async fn read_at(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<(Option<Revision>, Vec<Option<Record>>), StoreError> {
        self.alive()?;
        self.store.read_at(workspace, keys).await
    }

    async fn commit_at(
        &self,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(Commit, Option<Revision>), StoreError> {
        self.alive()?;
        if batch.operations.iter().all(|one| one.write == Write::Nothing) {
            return self.store.commit_at(workspace, batch).await;
        }
        let (done, answered) = self.change();
        let outcome = if done { self.store.commit_at(workspace, batch).await } else { Err(GONE) };
        if answered { outcome } else { Err(GONE) }
    }

    async fn shred(
        &self,
        workspace: &WorkspaceId,
        tombstone: Record,
    ) -> Result<Shredded, StoreError> {
        let (done, answered) = self.change();
        let outcome = if done { self.store.shred(workspace, tombstone).await } else { Err(GONE) };
        if answered { outcome } else { Err(GONE) }
    }

    async fn revision(&self, workspace: &WorkspaceId) -> Result<Option<Revision>, StoreError> {
        self.alive()?;
        self.store.revision(workspace).await
    }

    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.alive()?;
        self.store.request(workspace, id).await
    }

    async fn scan(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        self.alive()?;
        self.store.scan(workspace, prefix, after, limit).await
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError> {
        self.alive()?;
        self.store.keys(workspace, prefix, limit).await
    }

    async fn workspaces(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError> {
        self.alive()?;
        self.store.workspaces(cursor).await
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.alive()?;
        self.store.health().await
    }
}

/// Secrets of one run, each with an earlier version.
fn names(numbers: Range<usize>) -> impl Iterator<Item = String> {
    numbers.map(|number| format!("N{number:03}"))
}

async fn fill(rig: &Rig, numbers: Range<usize>) {
    if numbers.contains(&0) {
        create(&rig.secrets, "GONE", "gone first").await.unwrap();
        update(&rig.secrets, "GONE", "gone second").await.unwrap();
        delete(&rig.secrets, "GONE").await;
    }
    for name in names(numbers) {
        create(&rig.secrets, &name, &format!("{name} first")).await.unwrap();
        update(&rig.secrets, &name, &format!("{name} second")).await.unwrap();
    }
}

/// A replica that has just started reads every value.
async fn assert_readable(rig: &Rig, numbers: Range<usize>) {
    let fresh = rig.replica(rig.store.clone());
    for name in names(numbers) {
        assert_eq!(read(&fresh, &name, None).await, Ok(format!("{name} second")));
        assert_eq!(read(&fresh, &name, Some(1)).await, Ok(format!("{name} first")));
    }
    // It also writes, and brings back what was deleted.
    undelete(&fresh, "GONE").await;
    assert_eq!(read(&fresh, "GONE", None).await.as_deref(), Ok("gone second"));
    assert_eq!(read(&fresh, "GONE", Some(1)).await.as_deref(), Ok("gone first"));
    delete(&fresh, "GONE").await;
}

fn is_gone<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::StoreUnavailable("gone")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reencryption_cut_off_anywhere_is_finished_by_the_next() {
    for (store, _keep) in engines().await {
        // Deleted secrets outlast the days that pass here.
        let rig = Rig::keeping(store, 1_000 * DAY);
        fill(&rig, 0..40).await;
        let mut cut = 0;
        for silent in [false, true] {
            for changes in 0.. {
                let first = rig.rotate().await.keys.remove(1);
                rig.clock.advance(2 * DAY);
                let dying = rig.replica(Stopping::after(&rig.store, changes, silent));
                let outcome = reencrypt(&dying, false).await;
                let finished = outcome.is_ok();
                assert!(finished || is_gone(&outcome), "{changes}: {:?}", outcome.err());
                assert_readable(&rig, 0..40).await;
                cut += usize::from(!finished);

                let report = reencrypt(&rig.secrets, false).await.unwrap();
                assert_eq!((report.verified, report.failed, report.done), (82, 0, true));
                let fates: Vec<_> = report.keys.iter().map(|(_, fate)| *fate).collect();
                assert!(fates.iter().all(|fate| *fate == KeyFate::Destroyed), "{fates:?}");
                assert!(rig.retired(&first).await.is_none());
                assert_eq!(rig.keys().await.keys.len(), 1);
                assert_readable(&rig, 0..40).await;
                if finished {
                    break;
                }
            }
        }
        // 82 values in steps of 32, then the key: each was a last one.
        assert!(cut >= 2 * 4, "{cut}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrapping_cut_off_anywhere_is_finished_by_the_next() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        fill(&rig, 0..3).await;
        rig.rotate().await;
        fill(&rig, 3..6).await;
        rig.rotate().await;
        let mut cut = 0;
        for silent in [false, true] {
            for changes in 0.. {
                let target = format!("key-{silent}-{changes}");
                rig.kms.rename(&target);
                let dying = rig.replica(Stopping::after(&rig.store, changes, silent));
                let outcome = rewrap(&dying).await;
                let finished = outcome.is_ok();
                assert!(finished || is_gone(&outcome), "{changes}: {:?}", outcome.err());
                assert_readable(&rig, 0..6).await;
                cut += usize::from(!finished);

                let report = rewrap(&rig.secrets).await.unwrap();
                assert_eq!((report.unchanged, report.failed, report.done), (3, 0, true));
                let keys = rig.keys().await.keys;
                assert!(keys.iter().all(|key| key.wrapped.kms_key_id == target));
                assert_readable(&rig, 0..6).await;
                if finished {
                    break;
                }
            }
        }
        assert!(cut >= 2 * 3, "{cut}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_or_shredding_cut_off_is_whole_or_nothing() {
    for (store, _keep) in engines().await {
        let rig = Rig::new(store);
        fill(&rig, 0..3).await;
        for (changes, silent, keys) in [(0, false, 1), (1, true, 2)] {
            let dying = rig.replica(Stopping::after(&rig.store, changes, silent));
            assert!(is_gone(&rotate(&dying).await));
            assert_eq!(rig.keys().await.keys.len(), keys);
            assert_readable(&rig, 0..3).await;
        }
        assert_eq!(rig.rotate().await.keys.len(), 3);
        assert_readable(&rig, 0..3).await;

        let shred = || ShredWorkspace { workspace: ws() };
        let dying = rig.replica(Stopping::after(&rig.store, 0, false));
        assert!(dying.shred(&caller(), shred()).await.is_err());
        assert_readable(&rig, 0..3).await;
        let dying = rig.replica(Stopping::after(&rig.store, 1, true));
        assert!(dying.shred(&caller(), shred()).await.is_err());
        let gone = read(&rig.secrets, "N000", None).await;
        assert_eq!(gone, Err(Error::WorkspaceShredded));
        let done = rig.secrets.shred(&caller(), shred()).await.unwrap();
        assert_eq!(done.records, 0);
    }
}
