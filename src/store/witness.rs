//! What this process has seen of a store, against a store that has gone back:
//! an older snapshot put in its place, or a failover that lost the last writes.
//!
//! A workspace's revision only grows. So it is kept, as far as it was seen, and
//! an answer of a lesser one is an answer of an older store. And a tombstone
//! never goes: where one was seen, or is listed, none of what the store has of
//! that workspace comes out any more.
//!
//! It knows what it has seen: nothing of the time before its process began, and
//! of the [`MAX_KNOWN`] workspaces looked at last.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use lru::LruCache;

use super::{
    Batch, Commit, Key, Record, Shredded, Store, StoreError, WorkspacesCursor,
    codec::{self, Tombstone},
};
use crate::domain::{RequestId, Revision, Timestamp, WorkspaceId};

/// Workspaces whose revisions are kept, and destroyed ones that are remembered:
/// at 128 bytes an id, about 25 MB of each.
const MAX_KNOWN: NonZeroUsize = const { NonZeroUsize::new(100_000).unwrap() };

/// More changes than are made between two looks. A revision so far ahead is that
/// of a workspace begun anew: the first one is random.
const LEAP: u64 = 1 << 32;

/// How a store has gone back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regression {
    /// The workspace was at `seen`, and is at `found` now: `None` for nothing.
    Older {
        /// The greatest revision seen.
        seen: Revision,
        /// The one that came then.
        found: Option<Revision>,
    },
    /// The workspace was destroyed, and its tombstone is gone.
    Resurrected,
}

/// Workspaces that are destroyed whatever a store says.
pub type ShreddedList = BTreeSet<WorkspaceId>;

/// A store, seen by one process over time.
pub struct Witness {
    store: Arc<dyn Store>,
    listed: Arc<ArcSwap<ShreddedList>>,
    seen: Mutex<Seen>,
}

struct Seen {
    revisions: LruCache<WorkspaceId, Revision>,
    graves: LruCache<WorkspaceId, Grave>,
    /// Not told yet; the first of each workspace.
    untold: BTreeMap<WorkspaceId, Regression>,
}

/// A workspace that is known to be destroyed.
#[derive(Clone)]
struct Grave {
    tombstone: Record,
    /// Only because it is listed: the store may never have heard of it.
    listed: bool,
    /// It was told that the store has no tombstone.
    told: bool,
}

/// What was known when a call began. What comes back is compared with this, and
/// not with what other calls have seen meanwhile.
struct Known {
    revision: Option<Revision>,
    grave: Option<Grave>,
}

impl Witness {
    /// Has seen nothing yet; takes the listed workspaces for destroyed.
    pub fn new(store: Arc<dyn Store>, listed: Arc<ArcSwap<ShreddedList>>) -> Self {
        let seen = Seen {
            revisions: LruCache::sparse(MAX_KNOWN),
            graves: LruCache::sparse(MAX_KNOWN),
            untold: BTreeMap::new(),
        };
        Self { store, listed, seen: Mutex::new(seen) }
    }

    /// How the store has gone back since this was last asked: of each workspace
    /// at most once.
    pub fn take_regressions(&self) -> BTreeMap<WorkspaceId, Regression> {
        std::mem::take(&mut self.lock().untold)
    }

    /// Puts back what could not be told.
    pub fn keep_untold(&self, untold: BTreeMap<WorkspaceId, Regression>) {
        let mut seen = self.lock();
        for (workspace, regression) in untold {
            seen.note(&workspace, regression);
        }
    }

    fn known(&self, workspace: &WorkspaceId) -> Known {
        let listed = self.listed.load().contains(workspace);
        let mut seen = self.lock();
        let revision = seen.revisions.get(workspace).copied();
        let mut grave = seen.graves.get(workspace).cloned();
        if grave.as_ref().is_some_and(|grave| grave.listed) && !listed {
            // Taken off the list, where it stood by mistake.
            seen.graves.pop(workspace);
            grave = None;
        }
        if grave.is_none() && listed {
            let new =
                Grave { tombstone: made_up("--shredded-workspaces"), listed: true, told: false };
            seen.graves.put(workspace.clone(), new.clone());
            grave = Some(new);
        }
        Known { revision, grave }
    }

    /// Compares a revision with what was known before it was asked for.
    fn compare(&self, workspace: &WorkspaceId, known: &Known, found: Option<Revision>) {
        let number = |revision: Revision| revision.as_u64();
        let older = known.revision.filter(|seen| {
            found.is_none_or(|found| {
                number(found).checked_sub(number(*seen)).is_none_or(|ahead| ahead >= LEAP)
            })
        });
        let mut seen = self.lock();
        let current = seen.revisions.get(workspace).copied();
        match (older, found) {
            (Some(before), found) if current == Some(before) => {
                match found {
                    Some(found) => drop(seen.revisions.put(workspace.clone(), found)),
                    None => drop(seen.revisions.pop(workspace)),
                }
                seen.note(workspace, Regression::Older { seen: before, found });
            }
            // Another call has told of it.
            (Some(_), _) | (None, None) => {}
            (None, Some(found)) => match seen.revisions.get_mut(workspace) {
                Some(current) => *current = (*current).max(found),
                None => drop(seen.revisions.put(workspace.clone(), found)),
            },
        }
    }

    /// Remembers that a workspace is destroyed.
    fn bury(&self, workspace: &WorkspaceId, tombstone: &Record) {
        let mut seen = self.lock();
        seen.revisions.pop(workspace);
        let known = seen.graves.get(workspace);
        if known.is_none_or(|grave| grave.told || grave.listed || grave.tombstone != *tombstone) {
            let grave = Grave { tombstone: tombstone.clone(), listed: false, told: false };
            seen.graves.put(workspace.clone(), grave);
        }
    }

    /// The same of one whose tombstone was met, but not read.
    fn bury_unread(&self, workspace: &WorkspaceId) {
        let mut seen = self.lock();
        if seen.graves.peek(workspace).is_none_or(|grave| grave.listed) {
            seen.revisions.pop(workspace);
            let grave = Grave { tombstone: made_up("not read"), listed: false, told: false };
            seen.graves.put(workspace.clone(), grave);
        }
    }

    /// The tombstone of a workspace is gone.
    fn resurrected(&self, workspace: &WorkspaceId) {
        let mut seen = self.lock();
        if let Some(grave) = seen.graves.get_mut(workspace).filter(|grave| !grave.told) {
            grave.told = true;
            seen.note(workspace, Regression::Resurrected);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        // No step under the lock leaves anything half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn destroyed(&self, workspace: &WorkspaceId) -> bool {
        self.known(workspace).grave.is_some()
    }
}

impl Seen {
    fn note(&mut self, workspace: &WorkspaceId, regression: Regression) {
        if self.untold.len() < MAX_KNOWN.get() || regression == Regression::Resurrected {
            let told = self.untold.entry(workspace.clone()).or_insert(regression);
            if regression == Regression::Resurrected {
                *told = regression;
            }
        }
    }
}

/// A tombstone in place of one that was not read.
fn made_up(by: &str) -> Record {
    let time = Timestamp::new(0, 0);
    let tombstone = time.map(|time| Tombstone { time, by: by.to_owned() });
    let bytes = tombstone.as_ref().map_or_else(Vec::new, codec::encode_tombstone);
    Record { revision: Revision::from_u64(1), bytes }
}

#[async_trait]
impl Store for Witness {
    async fn read_at(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<(Option<Revision>, Vec<Option<Record>>), StoreError> {
        let known = self.known(workspace);
        let (revision, mut records) = self.store.read_at(workspace, keys).await?;
        let tombstone = Key::tombstone();
        let at = keys.iter().position(|key| *key == tombstone);
        let found = at.and_then(|at| records.get_mut(at)).map(|found| &*found);
        match (found, &known.grave) {
            (Some(Some(found)), _) => self.bury(workspace, found),
            (_, Some(grave)) => {
                if found.is_some() && (revision.is_some() || !grave.listed) {
                    self.resurrected(workspace);
                }
                for (record, key) in records.iter_mut().zip(keys) {
                    *record = (*key == tombstone).then(|| grave.tombstone.clone());
                }
            }
            (_, None) => self.compare(workspace, &known, revision),
        }
        Ok((revision, records))
    }

    async fn commit_at(
        &self,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(Commit, Option<Revision>), StoreError> {
        let known = self.known(workspace);
        if known.grave.is_some() {
            return Ok((Commit::Shredded, None));
        }
        let (commit, revision) = self.store.commit_at(workspace, batch).await?;
        if commit == Commit::Shredded {
            self.bury_unread(workspace);
        } else if revision.is_some() {
            self.compare(workspace, &known, revision);
        }
        Ok((commit, revision))
    }

    async fn revision(&self, workspace: &WorkspaceId) -> Result<Option<Revision>, StoreError> {
        let known = self.known(workspace);
        if known.grave.is_some() {
            // Or what was made of its values before would still count as true.
            return Ok(None);
        }
        let revision = self.store.revision(workspace).await?;
        self.compare(workspace, &known, revision);
        Ok(revision)
    }

    async fn shred(
        &self,
        workspace: &WorkspaceId,
        tombstone: Record,
    ) -> Result<Shredded, StoreError> {
        let shredded = self.store.shred(workspace, tombstone).await?;
        self.bury(workspace, &shredded.tombstone);
        Ok(shredded)
    }

    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        match self.destroyed(workspace) {
            true => Ok(None),
            false => self.store.request(workspace, id).await,
        }
    }

    async fn scan(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        match self.destroyed(workspace) {
            true => Ok(Vec::new()),
            false => self.store.scan(workspace, prefix, after, limit).await,
        }
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError> {
        match self.destroyed(workspace) {
            true => Ok(Vec::new()),
            false => self.store.keys(workspace, prefix, limit).await,
        }
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
