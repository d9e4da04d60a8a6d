//! The end of deleted secrets: whatever replica comes by removes them for good,
//! each in one commit. No replica leads: two that come at once do it once.

use std::time::Duration;

use super::{Deleted, Error, Secrets, audit::Action};
use crate::{
    domain::{DeletedSecret, WorkspaceId},
    store::{Batch, Commit, Expect, Key, Operation, Write},
};

/// Deleted secrets looked at in one step.
const STEP: usize = 100;

/// Between two workspaces of a sweep, so that it loads the store little.
const PAUSE: Duration = Duration::from_millis(20);

/// Sweeps are at most this far apart.
const LONGEST: Duration = Duration::from_secs(600);

impl Secrets {
    /// Purges what is due in every workspace, time and again, without end. What
    /// is due is gone for every call already; this makes room.
    pub async fn purge_without_end(&self) {
        loop {
            tokio::time::sleep(self.until_next_sweep()).await;
            if let Err(error) = self.sweep().await {
                // The next one finds what this one left.
                tracing::warn!(%error, "deleted secrets are not purged now");
            }
        }
    }

    /// A tenth of the time that deleted secrets are kept, and a random part of
    /// it more or less, so that replicas come by at different times.
    fn until_next_sweep(&self) -> Duration {
        let tenth = match self.limits.deleted_retention {
            Duration::ZERO => LONGEST,
            kept => (kept / 10).clamp(Duration::from_secs(1), LONGEST),
        };
        let random = getrandom::u32().unwrap_or(u32::MAX / 2);
        tenth.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX))
    }

    async fn sweep(&self) -> Result<(), Error> {
        let mut cursor = None;
        loop {
            let (workspaces, next) = self.store.workspaces(cursor.as_ref()).await?;
            for workspace in workspaces {
                match self.purge_due(&workspace).await {
                    Ok(_) => {}
                    Err(error @ (Error::StoreUnavailable(_) | Error::StoreFull)) => {
                        return Err(error);
                    }
                    // One that is broken must not keep what is due in all others.
                    Err(error) => {
                        tracing::error!(%workspace, %error, "deleted secrets are not purged");
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
            if next.is_none() {
                return Ok(());
            }
            cursor = next;
        }
    }

    /// Purges what is due in one workspace; tells whether anything was.
    pub(super) async fn purge_due(&self, workspace: &WorkspaceId) -> Result<bool, Error> {
        let (now, mut after, mut any) = (self.clock.now(), None, false);
        loop {
            let records = self.store.scan(workspace, Key::DELETED, after.as_ref(), STEP).await?;
            let exhausted = records.len() < STEP;
            for (key, record) in records {
                match Deleted::decode(&key, record) {
                    Ok(deleted) if deleted.secret.purge_time <= now => {
                        any |= self.purge(workspace, &deleted).await?;
                    }
                    Ok(_) => {}
                    Err(_) => tracing::error!(%key, "record of a deleted secret corrupt: kept"),
                }
                after = Some(key);
            }
            if exhausted {
                return Ok(any);
            }
        }
    }

    async fn purge(&self, workspace: &WorkspaceId, deleted: &Deleted) -> Result<bool, Error> {
        let DeletedSecret { metadata, .. } = &deleted.secret;
        let marker = Operation {
            key: Key::deleted(&metadata.name, metadata.uid),
            expect: Some(Expect::Revision(deleted.revision)),
            write: Write::Delete,
        };
        let versions = metadata.earlier.iter().map(|earlier| earlier.version);
        let values = versions.chain([metadata.version]).map(|version| Operation {
            key: Key::earlier(metadata.uid, version),
            expect: None,
            write: Write::Delete,
        });
        let operations = [marker].into_iter().chain(values).collect();
        let trail = self.trail_entry(self.own_entry(Action::Purge, metadata));
        let batch = Batch { operations, trail, ..Batch::default() };
        let done = self.store.commit(workspace, batch).await?;
        Ok(done == Commit::Done)
    }
}
