//! One look at every sealed value of a workspace.

use std::collections::{BTreeSet, HashSet};

use super::{Progress, ReencryptFailure, Reencrypted};
use crate::{
    domain::{DataKeyId, Revision, SecretMetadata, SecretName, WorkspaceId},
    envelope::SealedRecord,
    service::{ActiveKey, Deleted, Error, Secrets, Stored},
    store::{Batch, Expect, Key, Operation, Record, Write},
};

/// Metadata records of one look.
const PAGE: usize = 100;

/// Sealed values that are read, and perhaps put, in one step: at most 2.2 MiB.
const STEP: usize = 32;

/// Failures that are told by name; the others are counted.
const TOLD: usize = 100;

/// One pass.
pub(super) struct Pass<'a> {
    secrets: &'a Secrets,
    workspace: &'a WorkspaceId,
    progress: &'a Progress<Reencrypted>,
    report: &'a mut Reencrypted,
    /// Data keys that values name that do not open.
    needed: BTreeSet<DataKeyId>,
    /// Something cannot be read, so nobody knows which key it needs.
    unknown: bool,
    /// Something was moved, or somebody was faster: one more pass is due.
    unsettled: bool,
}

/// Where a sealed value lies.
#[derive(Clone)]
struct Place {
    /// The record that tells of it.
    told_by: Key,
    name: SecretName,
    version: u64,
    key: Key,
}

/// What a record tells of a secret: one that is there, or one that was deleted
/// and may come back.
fn told(key: &Key, record: Record) -> Result<Option<Stored>, Error> {
    if let Some(name) = key.as_str().strip_prefix(Key::METADATA) {
        let name = SecretName::parse(name).map_err(|_| Error::RecordCorrupt("metadata key"))?;
        return Stored::decode(&name, Some(record));
    }
    let Deleted { secret, revision } = Deleted::decode(key, record)?;
    Ok(Some(Stored { metadata: secret.metadata, revision }))
}

/// Where the current value of a secret lies.
fn current(told_by: &Key, metadata: &SecretMetadata) -> Key {
    if told_by.as_str().starts_with(Key::METADATA) {
        Key::value(&metadata.name)
    } else {
        Key::earlier(metadata.uid, metadata.version)
    }
}

/// A sealed value as it was found.
struct Found {
    place: Place,
    stored: Stored,
    /// What it is bound to.
    revision: Revision,
    value: Record,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        secrets: &'a Secrets,
        workspace: &'a WorkspaceId,
        progress: &'a Progress<Reencrypted>,
        report: &'a mut Reencrypted,
    ) -> Self {
        let needed = BTreeSet::new();
        Self { secrets, workspace, progress, report, needed, unknown: false, unsettled: false }
    }

    /// Whether every value was opened and found sealed with the active key, but
    /// for those that failed.
    pub(super) fn settled(&self) -> bool {
        !self.unsettled
    }

    /// Tells whether a key may be needed by what failed.
    pub(super) fn needs(self) -> impl Fn(DataKeyId) -> bool + use<> {
        let (unknown, needed) = (self.unknown, self.needed);
        move |id| unknown || needed.contains(&id)
    }

    pub(super) async fn run(&mut self) -> Result<(), Error> {
        for kind in [Key::METADATA, Key::DELETED] {
            self.run_over(kind).await?;
        }
        Ok(())
    }

    async fn run_over(&mut self, kind: &str) -> Result<(), Error> {
        let mut after = None;
        loop {
            let store = &self.secrets.store;
            let page = store.scan(self.workspace, kind, after.as_ref(), PAGE).await?;
            let exhausted = page.len() < PAGE;
            let mut places = Vec::new();
            for (key, record) in page {
                places.extend(self.places(&key, record));
                after = Some(key);
            }
            for step in places.chunks(STEP) {
                self.step(step.to_vec()).await?;
                self.report.values += step.len() as u64;
                self.progress.tell(self.report.clone())?;
            }
            if exhausted {
                return Ok(());
            }
        }
    }

    /// Where the values of a secret lie. What cannot be read names no key, so
    /// all of them stay.
    fn places(&mut self, key: &Key, record: Record) -> Vec<Place> {
        let metadata = match told(key, record) {
            Ok(Some(Stored { metadata, .. })) => metadata,
            Ok(None) => return vec![],
            Err(error) => {
                let name = key.as_str().split('/').nth(1).map(SecretName::parse);
                self.fail(name.and_then(Result::ok), 0, &error, None);
                return vec![];
            }
        };
        let place = |version, at| Place {
            told_by: key.clone(),
            name: metadata.name.clone(),
            version,
            key: at,
        };
        let earlier = metadata.earlier.iter().map(|earlier| earlier.version);
        let earlier = earlier.map(|version| place(version, Key::earlier(metadata.uid, version)));
        earlier.chain([place(metadata.version, current(key, &metadata))]).collect()
    }

    /// Looks at some values, all at one moment.
    async fn step(&mut self, places: Vec<Place>) -> Result<(), Error> {
        let mut keys = vec![Key::active_data_key()];
        for place in &places {
            keys.extend([place.told_by.clone(), place.key.clone()]);
        }
        let mut records = self.secrets.read_all(self.workspace, keys).await?.into_iter();
        let active = ActiveKey::decode(records.next().flatten())?.ok_or(Error::DataKeyMissing)?;
        let mut moves = Vec::new();
        for place in places {
            let (metadata, value) = (records.next().flatten(), records.next().flatten());
            let Some(found) = self.found(place, metadata, value) else { continue };
            moves.extend(self.look(found, &active).await?);
        }
        if moves.is_empty() {
            return Ok(());
        }
        self.unsettled = true;
        let (_, key_unchanged) =
            self.secrets.sealing_key(self.workspace, Some(active.clone())).await?;
        let all = moves.iter().flatten().cloned().collect();
        if self.put(all, &key_unchanged).await? {
            self.report.moved += moves.len() as u64;
            return Ok(());
        }
        // Somebody was faster with one of them: the others need not wait.
        for one in moves {
            self.report.moved += u64::from(self.put(one, &key_unchanged).await?);
        }
        Ok(())
    }

    /// False: somebody was faster.
    async fn put(&self, moves: Vec<Operation>, unchanged: &Operation) -> Result<bool, Error> {
        // Values of one secret check the same metadata.
        let mut seen = HashSet::new();
        let operations = moves.into_iter().chain([unchanged.clone()]);
        let operations = operations.filter(|one| seen.insert(one.key.clone())).collect();
        match self.secrets.commit(self.workspace, Batch { operations, ..Batch::default() }).await {
            Ok(()) => Ok(true),
            Err(Error::ConcurrentUpdate) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What lies at a place now; `None` if that is something else by now. Whoever
    /// put it there sealed it with the active key or left a mark: to look again
    /// for its sake would be to run after busy writers without end.
    fn found(
        &mut self,
        place: Place,
        metadata: Option<Record>,
        value: Option<Record>,
    ) -> Option<Found> {
        let stored = metadata.and_then(|record| told(&place.told_by, record).ok().flatten());
        let revision = stored.as_ref().and_then(|Stored { metadata, .. }| {
            if metadata.version == place.version {
                let here = current(&place.told_by, metadata) == place.key;
                return here.then_some(metadata.value_revision);
            }
            let here = Key::earlier(metadata.uid, place.version) == place.key;
            let earlier = metadata.earlier_version(place.version).filter(|_| here);
            earlier.map(|earlier| earlier.value_revision)
        });
        let (stored, revision) = (stored?, revision?);
        let Some(value) = value else {
            let absent = Error::RecordCorrupt("sealed value absent");
            self.fail(Some(place.name), place.version, &absent, None);
            return None;
        };
        Some(Found { place, stored, revision, value })
    }

    /// Opens a value; what puts it in place again under the active key, if
    /// another one sealed it.
    async fn look(
        &mut self,
        found: Found,
        active: &ActiveKey,
    ) -> Result<Option<Vec<Operation>>, Error> {
        let Found { place, stored, revision, value } = found;
        let sealed_by = SealedRecord::parse(value.bytes.clone()).ok();
        let sealed_by = sealed_by.map(|record| record.data_key_id());
        let record_revision = value.revision;
        let (secrets, workspace) = (self.secrets, self.workspace);
        let active_key = Some(active.clone());
        let opened =
            secrets.open_at(workspace, &stored.metadata, revision, value, active_key).await;
        let payload = match opened {
            Ok(payload) if payload.version == place.version => payload,
            Ok(_) => {
                let differs = Error::RecordCorrupt("metadata differs from the sealed value");
                self.fail(Some(place.name), place.version, &differs, sealed_by);
                return Ok(None);
            }
            Err(error @ (Error::RecordCorrupt(_) | Error::DataKeyMissing)) => {
                self.fail(Some(place.name), place.version, &error, sealed_by);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if sealed_by == Some(active.wrapped.id) {
            self.report.verified += 1;
            return Ok(None);
        }
        let (key, _) = secrets.sealing_key(workspace, Some(active.clone())).await?;
        let sealed = secrets.seal_at(workspace, &key, &stored.metadata, revision, &payload)?;
        let metadata_unchanged = Operation {
            key: place.told_by,
            expect: Some(Expect::Revision(stored.revision)),
            write: Write::Nothing,
        };
        let value = Operation {
            key: place.key,
            expect: Some(Expect::Revision(record_revision)),
            // Another one: whoever read the value before must not move it.
            write: Write::Put(Record { revision: Revision::initial(), bytes: sealed }),
        };
        Ok(Some(vec![metadata_unchanged, value]))
    }

    fn fail(
        &mut self,
        name: Option<SecretName>,
        version: u64,
        error: &Error,
        names: Option<DataKeyId>,
    ) {
        let (workspace, reason) = (self.workspace, error.reason());
        tracing::error!(%workspace, ?name, version, reason, "value not re-encrypted");
        match names {
            Some(id) => _ = self.needed.insert(id),
            None => self.unknown = true,
        }
        self.report.failed += 1;
        if self.report.failures.len() < TOLD {
            self.report.failures.push(ReencryptFailure { name, version, reason });
        }
    }
}
