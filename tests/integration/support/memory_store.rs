//! A store in memory that keeps the contract of the trait.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use workflow_secrets::{
    domain::{RequestId, Revision, WorkspaceId},
    store::{
        Batch, Commit, Expect, Key, Quota, Record, Shredded, Store, StoreError, Trail,
        WorkspacesCursor, Write,
    },
};

type Workspace = BTreeMap<Key, Record>;

#[derive(Default)]
pub(crate) struct MemoryStore {
    workspaces: Mutex<BTreeMap<WorkspaceId, Workspace>>,
    revisions: Mutex<BTreeMap<WorkspaceId, u64>>,
    requests: Mutex<BTreeMap<(WorkspaceId, RequestId), Vec<u8>>>,
    reads: AtomicUsize,
    read_fault: Mutex<Option<StoreError>>,
    commit_fault: Mutex<Option<(StoreError, bool)>>,
    overtaking: Mutex<Option<(Key, Record)>>,
}

impl MemoryStore {
    /// Calls of `read` so far.
    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    /// The records of a workspace.
    pub(crate) fn records(&self, workspace: &WorkspaceId) -> Workspace {
        self.workspaces.lock().unwrap().get(workspace).cloned().unwrap_or_default()
    }

    /// Puts a record, or removes it, past all conditions.
    pub(crate) fn set(&self, workspace: &WorkspaceId, key: Key, record: Option<Record>) {
        let mut workspaces = self.workspaces.lock().unwrap();
        let records = workspaces.entry(workspace.clone()).or_default();
        match record {
            Some(record) => records.insert(key, record),
            None => records.remove(&key),
        };
    }

    /// Puts the revision of a workspace, as a change elsewhere would or as none
    /// can: back.
    pub(crate) fn set_revision(&self, workspace: &WorkspaceId, revision: u64) {
        self.revisions.lock().unwrap().insert(workspace.clone(), revision);
    }

    /// Fails every read from now on, or none.
    pub(crate) fn fail_reads(&self, fault: Option<StoreError>) {
        *self.read_fault.lock().unwrap() = fault;
    }

    /// Fails the next commit that writes; `done` tells whether it is carried out all the
    /// same.
    pub(crate) fn fail_commit(&self, error: StoreError, done: bool) {
        *self.commit_fault.lock().unwrap() = Some((error, done));
    }

    /// Somebody puts this record just before the next commit that writes.
    pub(crate) fn overtake(&self, key: Key, record: Record) {
        *self.overtaking.lock().unwrap() = Some((key, record));
    }

    fn carry_out(&self, workspace: &WorkspaceId, batch: Batch) -> Commit {
        let mut workspaces = self.workspaces.lock().unwrap();
        let mut requests = self.requests.lock().unwrap();
        if workspaces.get(workspace).is_some_and(|all| all.contains_key(&Key::tombstone())) {
            return Commit::Shredded;
        }
        let known = |(id, _): &(RequestId, Vec<u8>)| {
            requests.get(&(workspace.clone(), id.clone())).cloned()
        };
        if let Some(outcome) = batch.request.as_ref().and_then(known) {
            return Commit::Replayed(outcome);
        }
        let records = workspaces.entry(workspace.clone()).or_default();
        if batch.expect_empty && !records.is_empty() {
            return Commit::NotEmpty;
        }
        let changes =
            batch.trail.is_some() || batch.operations.iter().any(|one| one.write != Write::Nothing);
        let advances = changes && !batch.bookkeeping;
        let mut after = records.clone();
        for operation in batch.operations {
            let found = records.get(&operation.key).map(|record| record.revision);
            let holds = match operation.expect {
                None => true,
                Some(Expect::Absent) => found.is_none(),
                Some(Expect::Revision(revision)) => found == Some(revision),
            };
            if !holds {
                return Commit::Conflict(operation.key);
            }
            match operation.write {
                Write::Put(record) => drop(after.insert(operation.key, record)),
                Write::Delete => drop(after.remove(&operation.key)),
                Write::Nothing => {}
            }
        }
        if let Some(Quota { kind, max }) = batch.quota {
            let count = |records: &Workspace| {
                records.keys().filter(|key| key.as_str().starts_with(kind)).count() as u64
            };
            // No batch of this service both adds and removes some of a kind.
            if count(&after) > max && count(&after) > count(records) {
                return Commit::Full;
            }
        }
        *records = after;
        if advances {
            let mut revisions = self.revisions.lock().unwrap();
            let number = revisions.entry(workspace.clone()).or_default();
            *number += 1;
            if let Some(Trail { entry, keep }) = batch.trail {
                let key = format!("{}{:016}", Key::TRAIL, (1 << 53) - 1 - *number);
                let record = Record { revision: Revision::from_u64(1), bytes: entry };
                records.insert(Key::from_stored(key), record);
                let trail = records.keys().filter(|key| key.as_str().starts_with(Key::TRAIL));
                let oldest: Vec<_> = trail.skip(keep.try_into().unwrap()).cloned().collect();
                records.retain(|key, _| !oldest.contains(key));
            }
        }
        if let Some((id, outcome)) = batch.request {
            requests.insert((workspace.clone(), id), outcome);
        }
        Commit::Done
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn read_at(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<(Option<Revision>, Vec<Option<Record>>), StoreError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if let Some(fault) = self.read_fault.lock().unwrap().clone() {
            return Err(fault);
        }
        let records = self.records(workspace);
        let found = keys.iter().map(|key| records.get(key).cloned()).collect();
        Ok((self.revision(workspace).await?, found))
    }

    async fn commit_at(
        &self,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(Commit, Option<Revision>), StoreError> {
        let writes = batch.operations.iter().any(|operation| operation.write != Write::Nothing);
        if let Some((key, record)) = self.overtaking.lock().unwrap().take_if(|_| writes) {
            self.set(workspace, key, Some(record));
        }
        let fault = self.commit_fault.lock().unwrap().take_if(|_| writes);
        match fault {
            None => {
                let revision = || self.revisions.lock().unwrap().get(workspace).copied();
                let before = revision();
                let commit = self.carry_out(workspace, batch);
                let after = revision().filter(|after| Some(*after) != before);
                Ok((commit, after.map(Revision::from_u64)))
            }
            Some((error, done)) => {
                if done {
                    self.carry_out(workspace, batch);
                }
                Err(error)
            }
        }
    }

    async fn revision(&self, workspace: &WorkspaceId) -> Result<Option<Revision>, StoreError> {
        if let Some(fault) = self.read_fault.lock().unwrap().clone() {
            return Err(fault);
        }
        let number = self.revisions.lock().unwrap().get(workspace).copied();
        Ok(number.map(Revision::from_u64))
    }

    async fn shred(
        &self,
        workspace: &WorkspaceId,
        tombstone: Record,
    ) -> Result<Shredded, StoreError> {
        let mut workspaces = self.workspaces.lock().unwrap();
        let records = workspaces.entry(workspace.clone()).or_default();
        if let Some(tombstone) = records.get(&Key::tombstone()).cloned() {
            return Ok(Shredded { records: 0, tombstone });
        }
        let destroyed = u64::try_from(records.len()).unwrap();
        *records = BTreeMap::from([(Key::tombstone(), tombstone.clone())]);
        *self.revisions.lock().unwrap().entry(workspace.clone()).or_default() += 1;
        self.requests.lock().unwrap().retain(|(owner, _), _| owner != workspace);
        Ok(Shredded { records: destroyed, tombstone })
    }

    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.requests.lock().unwrap().get(&(workspace.clone(), id.clone())).cloned())
    }

    async fn scan(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        let records = self.records(workspace).into_iter();
        Ok(records
            .filter(|(key, _)| key.as_str().starts_with(prefix) && after.is_none_or(|a| key > a))
            .take(limit)
            .collect())
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError> {
        let found = self.scan(workspace, prefix, None, limit).await?;
        Ok(found.into_iter().map(|(key, _)| key).collect())
    }

    async fn workspaces(
        &self,
        _cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError> {
        Ok((self.workspaces.lock().unwrap().keys().cloned().collect(), None))
    }

    async fn health(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
