//! RewrapDataKeys.

use std::sync::Arc;

use super::{
    authorize,
    job::{Progress, Steps},
};
use crate::{
    domain::{DataKeyId, WorkspaceId},
    service::{Caller, Error, Secrets, audit::Action},
    store::{
        Batch, Expect, Key, Operation, Record, Write,
        codec::{self, StoredKey},
    },
};

/// Failures that are told by name; the others are counted.
const TOLD: usize = 100;

/// Attempts to be faster than others who change a data key.
const ATTEMPTS: usize = 8;

/// Data keys to wrap anew.
pub struct RewrapDataKeys {
    /// Of this workspace; `None`: of all.
    pub workspace: Option<WorkspaceId>,
    /// The key-encryption key that the caller takes to be the one that wraps
    /// new data keys; `None`: whichever is.
    pub kms_key: Option<String>,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrapped {
    /// How many times the workspaces were gone through, this time included.
    pub pass: u64,
    /// Workspaces looked at in this pass.
    pub workspaces: u64,
    /// Data keys wrapped anew, in all passes.
    pub rewrapped: u64,
    /// Data keys that this pass found wrapped by the key for new ones.
    pub unchanged: u64,
    /// Data keys that could not be wrapped anew in this pass.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<RewrapFailure>,
    /// The key-encryption key for new data keys, as the KMS names it; empty
    /// until it is known.
    pub kms_key: String,
    /// There is nothing left to do but what failed.
    pub done: bool,
}

/// A data key that could not be wrapped anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewrapFailure {
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// The key; `None` if its record cannot be read.
    pub data_key: Option<DataKeyId>,
    /// Reason of the error.
    pub reason: &'static str,
}

impl Secrets {
    /// Wraps data keys with the key-encryption key that wraps new ones. Each
    /// is unwrapped before it takes the place of what was there. Needs no state
    /// but the data keys themselves: a second run goes on where one ended.
    ///
    /// # Errors
    /// Those of every call; later ones come as the last step.
    pub async fn rewrap_data_keys(
        self: &Arc<Self>,
        caller: &Caller,
        request: RewrapDataKeys,
    ) -> Result<Steps<Rewrapped>, Error> {
        let grants = match &request.workspace {
            Some(workspace) => self.grants(caller, workspace),
            None => self.policy.load().grants_everywhere(&caller.id),
        };
        let authorized = authorize(&grants).and_then(|()| match &request.kms_key {
            Some(key) if key != self.keyring.kms_key() => {
                Err(Error::field("kms_key", "must be the --kms-key of the service"))
            }
            _ => Ok(()),
        });
        let what = (Action::RewrapDataKeys, request.workspace.clone());
        let who = caller.clone();
        let work = |secrets, progress| rewrap(secrets, progress, request.workspace, who);
        self.job(caller, what, authorized, work).await
    }

    /// Wraps one data key anew. What it is wrapped by now, and whether that is
    /// news.
    async fn rewrap_one(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        key: &Key,
        target: &str,
    ) -> Result<Option<(StoredKey, bool)>, Error> {
        for _ in 0..ATTEMPTS {
            let [record] = self.read(workspace, [key.clone()]).await?;
            // Retired or removed meanwhile: it is found elsewhere, or not needed.
            let Some(record) = record else { return Ok(None) };
            let stored = codec::decode_data_key(&record.bytes)?;
            if stored.wrapped.kms_key_id == target {
                return Ok(Some((stored, false)));
            }
            let wrapped = self.keyring.rewrap(workspace, &stored.wrapped).await?;
            if wrapped.kms_key_id == stored.wrapped.kms_key_id {
                return Ok(Some((stored, false)));
            }
            let anew = StoredKey { wrapped, ..stored };
            let (revision, bytes) = (record.revision.next(), codec::encode_data_key(&anew));
            let operation = Operation {
                key: key.clone(),
                expect: Some(Expect::Revision(record.revision)),
                write: Write::Put(Record { revision, bytes }),
            };
            let trail = self.keys_trail(caller, Action::RewrapDataKeys);
            let batch = Batch { operations: vec![operation], trail, ..Batch::default() };
            match self.commit(workspace, batch).await {
                Ok(()) => return Ok(Some((anew, true))),
                Err(Error::ConcurrentUpdate) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::ConcurrentUpdate)
    }
}

/// Goes through the workspaces until nothing is left to do.
async fn rewrap(
    secrets: Arc<Secrets>,
    progress: Progress<Rewrapped>,
    only: Option<WorkspaceId>,
    caller: Caller,
) -> Result<Rewrapped, Error> {
    let mut report = Rewrapped::default();
    loop {
        report = Rewrapped {
            pass: report.pass + 1,
            rewrapped: report.rewrapped,
            kms_key: report.kms_key,
            ..Rewrapped::default()
        };
        let before = report.rewrapped;
        let (mut settled, mut cursor) = (true, None);
        loop {
            let (page, next) = match &only {
                Some(workspace) => (vec![workspace.clone()], None),
                None => secrets.store.workspaces(cursor.as_ref()).await?,
            };
            for workspace in page {
                settled &=
                    rewrap_workspace(&secrets, &caller, &progress, &workspace, &mut report).await?;
                report.workspaces += 1;
                progress.tell(report.clone())?;
            }
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        // What was made or moved behind the back of a pass is found by the next.
        if settled && report.rewrapped == before {
            report.done = true;
            return Ok(report);
        }
    }
}

/// Whether all keys were looked at: a rotation moves one behind those that were.
async fn rewrap_workspace(
    secrets: &Secrets,
    caller: &Caller,
    progress: &Progress<Rewrapped>,
    workspace: &WorkspaceId,
    report: &mut Rewrapped,
) -> Result<bool, Error> {
    // Also in a workspace that is over the limit.
    let keys = secrets.store.keys(workspace, Key::DATA_KEY, usize::MAX).await?;
    for key in &keys {
        match secrets.rewrap_one(caller, workspace, key, &report.kms_key).await {
            Ok(None) => {}
            // Destroyed meanwhile.
            Err(Error::WorkspaceShredded) => return Ok(true),
            Ok(Some((stored, anew))) => {
                report.rewrapped += u64::from(anew);
                report.unchanged += u64::from(!anew);
                report.kms_key = stored.wrapped.kms_key_id;
            }
            // May pass, and then goes for all: to be run again.
            Err(
                error @ (Error::KmsUnavailable { .. }
                | Error::StoreUnavailable(_)
                | Error::StoreFull
                | Error::AuditUnavailable),
            ) => return Err(error),
            Err(error) => {
                report.failed += 1;
                let reason = error.reason();
                tracing::error!(%workspace, %key, reason, "data key not wrapped anew");
                if report.failures.len() < TOLD {
                    let data_key = key.as_str().strip_prefix(Key::DATA_KEY);
                    let data_key = data_key.and_then(|id| DataKeyId::parse(id).ok());
                    let workspace = workspace.clone();
                    report.failures.push(RewrapFailure { workspace, data_key, reason });
                }
            }
        }
        progress.tell(report.clone())?;
    }
    Ok(secrets.store.keys(workspace, Key::DATA_KEY, usize::MAX).await? == keys)
}
