//! ReencryptWorkspace.
//!
//! A pass looks at every sealed value and seals those that a retired data key
//! sealed with the active one. Passes go on until one finds nothing to move; it
//! has opened every value then, and the retired keys that none of them names are
//! destroyed. No state is kept but the records: a second run goes on where one
//! ended, wherever that was.
//!
//! A value stays bound to its revision, so metadata, etags and the table of versions stay
//! as they are. Each is put only if what it belongs to is unchanged: whoever
//! writes meanwhile wins, and the next pass looks again.
//!
//! Why no key is destroyed that is still needed:
//! - Nothing is sealed with a retired key: every commit of a sealed value fails
//!   once another key is active than the one that sealed it.
//! - A commit that puts a sealed value elsewhere as it is demands that it still
//!   lies where it was read, and also writes the mark of its retired key, see
//!   [`super::moving`]. One that deletes a secret with earlier versions, or brings
//!   it back, writes a mark of its own: a pass may come too late for the one place
//!   and too early for the other. A key is destroyed only if its record and both
//!   marks are as they were before the pass that found no value of it.

mod pass;

use std::{sync::Arc, time::Duration};

use self::pass::Pass;
use super::{
    authorize,
    job::{Progress, Steps},
};
use crate::{
    domain::{DataKeyId, SecretName, Timestamp, WorkspaceId},
    service::{Caller, Error, Secrets, audit::Action},
    store::{
        Batch, Expect, Key, Operation, Record, Write,
        codec::{self, StoredKey},
    },
};

/// For so long the key that was active remains for the fingerprints of request
/// ids, which are remembered for 24 hours. An hour more, as clocks differ.
const REMEMBERED: Duration = Duration::from_secs(25 * 60 * 60);

/// A workspace to re-encrypt.
pub struct ReencryptWorkspace {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Also destroy keys by which remembered request ids are recognised: these
    /// are then refused, and never carried out twice.
    pub forget_requests: bool,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reencrypted {
    /// How many times the values were gone through, this time included.
    pub pass: u64,
    /// Values looked at in this pass.
    pub values: u64,
    /// Values sealed with the active key, in all passes.
    pub moved: u64,
    /// Values opened in this pass and found sealed with the active key.
    pub verified: u64,
    /// Values that do not open; the keys they name are kept.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<ReencryptFailure>,
    /// What became of the retired keys; only in the report.
    pub keys: Vec<(DataKeyId, KeyFate)>,
    /// This is the report.
    pub done: bool,
}

/// A value that does not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReencryptFailure {
    /// Its secret, if that is known.
    pub name: Option<SecretName>,
    /// Its version; 0 if what tells of it cannot be read.
    pub version: u64,
    /// Reason of the error.
    pub reason: &'static str,
}

/// What became of a retired key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFate {
    /// It is destroyed.
    Destroyed,
    /// A value that does not open names it, or something cannot be read.
    Needed,
    /// Request ids are recognised by it until then; a run from then on destroys
    /// it.
    Remembered(Timestamp),
}

impl Secrets {
    /// Seals all values of a workspace with its active data key, opens every
    /// one of them, and destroys the retired keys.
    ///
    /// # Errors
    /// Those of every call; later ones come as the last step.
    pub async fn reencrypt(
        self: &Arc<Self>,
        caller: &Caller,
        request: ReencryptWorkspace,
    ) -> Result<Steps<Reencrypted>, Error> {
        let authorized = authorize(&self.grants(caller, &request.workspace));
        let what = (Action::Reencrypt, Some(request.workspace.clone()));
        let who = caller.clone();
        let work = |secrets, progress| reencrypt(secrets, progress, request, who);
        self.job(caller, what, authorized, work).await
    }

    /// The retired data keys of a workspace as they lie in the store.
    async fn retired_keys(&self, workspace: &WorkspaceId) -> Result<Vec<Retired>, Error> {
        let records = self.store.scan(workspace, Key::DATA_KEY, None, usize::MAX).await?;
        let mut retired = Vec::new();
        for (key, record) in records {
            let stored = codec::decode_data_key(&record.bytes)?;
            if key == Key::data_key(stored.wrapped.id) {
                retired.push((stored, record.revision));
            }
        }
        let marks = retired.iter().map(|(stored, _)| Key::moved(stored.wrapped.id));
        let marks = [Key::retold()].into_iter().chain(marks).collect();
        let mut marks = self.read_all(workspace, marks).await?.into_iter();
        let mark = |mark: Option<Record>| {
            mark.map_or(Expect::Absent, |mark| Expect::Revision(mark.revision))
        };
        let retold = mark(marks.next().flatten());
        let all = retired.into_iter().zip(marks);
        let all = all.map(|((stored, revision), found)| Retired {
            stored,
            record: Expect::Revision(revision),
            mark: mark(found),
            retold,
        });
        Ok(all.collect())
    }

    /// Destroys a retired key if its record and the marks are still as they were.
    async fn destroy_key(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        key: &Retired,
    ) -> Result<(), Error> {
        let id = key.stored.wrapped.id;
        let delete = |key, expect| Operation { key, expect: Some(expect), write: Write::Delete };
        let retold =
            Operation { key: Key::retold(), expect: Some(key.retold), write: Write::Nothing };
        let operations =
            vec![delete(Key::data_key(id), key.record), delete(Key::moved(id), key.mark), retold];
        let trail = self.keys_trail(caller, Action::Reencrypt);
        self.commit(workspace, Batch { operations, trail, ..Batch::default() }).await?;
        // The other keys are unwrapped again when they are needed.
        self.keyring.evict(workspace);
        Ok(())
    }
}

/// A retired data key.
struct Retired {
    stored: StoredKey,
    /// What its record must be for it to be destroyed.
    record: Expect,
    /// The same of its mark.
    mark: Expect,
    /// The same of the mark of secrets that were deleted or brought back.
    retold: Expect,
}

async fn reencrypt(
    secrets: Arc<Secrets>,
    progress: Progress<Reencrypted>,
    request: ReencryptWorkspace,
    caller: Caller,
) -> Result<Reencrypted, Error> {
    let workspace = &request.workspace;
    let mut report = Reencrypted::default();
    'passes: loop {
        // Before the pass: whatever is moved during it changes these.
        let retired = secrets.retired_keys(workspace).await?;
        report = Reencrypted { pass: report.pass + 1, moved: report.moved, ..Default::default() };
        let mut pass = Pass::new(&secrets, workspace, &progress, &mut report);
        pass.run().await?;
        if !pass.settled() {
            continue;
        }
        let needed = pass.needs();
        let now = secrets.clock.now();
        let mut fates = Vec::new();
        for key in &retired {
            let id = key.stored.wrapped.id;
            let until = key.stored.retire_time.and_then(|time| time.checked_add(REMEMBERED));
            let fate = match until {
                _ if needed(id) => KeyFate::Needed,
                Some(until) if now < until && !request.forget_requests => {
                    KeyFate::Remembered(until)
                }
                _ => match secrets.destroy_key(&caller, workspace, key).await {
                    Ok(()) => KeyFate::Destroyed,
                    Err(Error::ConcurrentUpdate) => continue 'passes,
                    Err(error) => return Err(error),
                },
            };
            fates.push((id, fate));
        }
        report.keys = fates;
        report.done = true;
        return Ok(report);
    }
}
