//! Values brought from the store and opened, for Resolve and its kin.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
};

use tokio::task::yield_now;

use super::{
    ActiveKey, Cause, Error, Grants, Secrets, Seen, Stored, Unresolved, values::ValueTurn,
};
use crate::{
    domain::{
        DataKeyId, EarlierVersion, Revision, SecretMetadata, SecretName, SecretUid, ValueMetadata,
        WorkspaceId, WrappedDataKey,
    },
    envelope::{self, Binding, DataKey, Payload, SealedRecord},
    store::{
        Key, Record, StoreError,
        codec::{self, UnreadKey},
    },
};

/// Missing names of one call for which another spelling is looked up.
const SUGGESTIONS: usize = 10;

/// Values opened at a stretch: then other calls have their turn.
const STRETCH: usize = 16;

/// What there is of a secret now.
pub(super) enum Opened {
    /// No such secret.
    Missing,
    /// Its expiry has passed: the value is not for use.
    Expired(Arc<Payload>),
    /// A value for use, and what is known of it.
    Current(Arc<Payload>, Box<Known>),
}

/// What is known of a secret whose value was opened.
pub(super) struct Known {
    metadata: ValueMetadata,
    revision: Revision,
}

impl Opened {
    /// Whether this version of it is kept.
    pub(super) fn has(&self, version: u64) -> bool {
        match self {
            Self::Current(payload, stored) => {
                payload.version == version || stored.metadata.earlier(version).is_some()
            }
            Self::Missing | Self::Expired(_) => false,
        }
    }

    /// The secret's identity, if its value is for use.
    pub(super) fn uid(&self) -> Option<SecretUid> {
        match self {
            Self::Current(_, stored) => Some(stored.metadata.uid),
            Self::Missing | Self::Expired(_) => None,
        }
    }

    /// Whether it is less than a caller has seen of it.
    pub(super) fn falls_short(&self, seen: &Seen) -> Option<Cause> {
        let Self::Current(payload, stored) = self else { return None };
        if seen.uid.is_some_and(|uid| uid != stored.metadata.uid) {
            return Some(Cause::Replaced);
        }
        let stale = seen.min_version.filter(|least| payload.version < *least);
        stale.map(|least| Cause::Stale { version: payload.version, least })
    }

    /// The value, if it is for use.
    pub(super) fn current(&self) -> Result<&Arc<Payload>, Cause> {
        match self {
            Self::Missing => Err(Cause::Missing(None)),
            Self::Expired(_) => Err(Cause::Expired),
            Self::Current(payload, _) => Ok(payload),
        }
    }
}

/// Earlier values by secret and number, or why there is none.
pub(super) type Versions<'n> = BTreeMap<(&'n SecretName, u64), Result<Arc<Payload>, Cause>>;

impl Secrets {
    /// Opens the secrets of these names. One store read, however many there
    /// are.
    pub(super) async fn open<'n>(
        &self,
        workspace: &WorkspaceId,
        names: &BTreeSet<&'n SecretName>,
    ) -> Result<BTreeMap<&'n SecretName, Opened>, Error> {
        self.open_in_turn(workspace, names, &mut ValueTurn::of(0)).await
    }

    /// The same, once the turn of these values has come.
    pub(super) async fn open_in_turn<'n>(
        &self,
        workspace: &WorkspaceId,
        names: &BTreeSet<&'n SecretName>,
        turn: &mut ValueTurn,
    ) -> Result<BTreeMap<&'n SecretName, Opened>, Error> {
        // With room for one more, of whoever reads.
        let mut wanted = Vec::with_capacity(names.len() * 2 + 2);
        wanted.push(Key::active_data_key());
        for name in names {
            wanted.extend([Key::metadata(name), Key::value(name)]);
        }
        // Large futures are pinned where they are made: each step up would copy them.
        let mut records = pin!(self.read_all(workspace, wanted)).await?.into_iter();
        let mut keys = Keys::unread(self, workspace, records.next().flatten())?;
        if turn.awaited() {
            // The KMS is asked before: whoever waits for it must not hold up
            // others. If it fails, opening tells so.
            if records.as_slice().iter().any(Option::is_some) {
                let _ = keys.active().await;
            }
            let values = records.as_slice().iter().skip(1).step_by(2).flatten();
            let lengths = values.map(|value| value.bytes.len());
            self.admission.values.wait(turn, lengths).await;
        }
        let now = self.clock.now();
        let mut all = BTreeMap::new();
        for (count, name) in names.iter().enumerate() {
            if count > 0 && count % STRETCH == 0 {
                yield_now().await;
            }
            let (metadata, value) = (records.next().flatten(), records.next().flatten());
            let opened = match metadata {
                None => Opened::Missing,
                Some(Record { revision, bytes }) => {
                    let metadata = codec::decode_value_metadata(name, &bytes)?;
                    let payload = Arc::new(keys.open_value(name, &metadata, value).await?);
                    // The expiry that counts is the one sealed with the value.
                    match payload.expire_time {
                        Some(time) if time <= now => Opened::Expired(payload),
                        _ => Opened::Current(payload, Box::new(Known { metadata, revision })),
                    }
                }
            };
            all.insert(*name, opened);
        }
        Ok(all)
    }

    /// Opens one stored value, to seal it again with other terms.
    pub(super) async fn reopen(
        &self,
        workspace: &WorkspaceId,
        stored: &Stored,
        value: Option<Record>,
        active: Option<ActiveKey>,
    ) -> Result<Payload, Error> {
        let mut keys = Keys::read(self, workspace, active);
        keys.open_value(&stored.metadata.name, &(&stored.metadata).into(), value).await
    }

    /// Opens a value that is bound to this revision.
    pub(super) async fn open_at(
        &self,
        workspace: &WorkspaceId,
        metadata: &SecretMetadata,
        revision: Revision,
        value: Record,
        active: Option<ActiveKey>,
    ) -> Result<Payload, Error> {
        let mut keys = Keys::read(self, workspace, active);
        keys.open_at(&metadata.name, metadata.uid, revision, Some(value)).await
    }

    /// Opens one earlier value, to make it the newest.
    pub(super) async fn reopen_earlier(
        &self,
        workspace: &WorkspaceId,
        metadata: &SecretMetadata,
        wanted: &EarlierVersion,
        value: Option<Record>,
        active: Option<ActiveKey>,
    ) -> Result<Payload, Error> {
        let mut keys = Keys::read(self, workspace, active);
        let wanted = (wanted.version, wanted.value_revision);
        keys.open_earlier(&metadata.name, metadata.uid, wanted, value).await
    }

    /// Opens the earlier values of these names and numbers, of secrets opened
    /// before. One store read. `None`: one of the secrets was changed since.
    pub(super) async fn open_versions<'n>(
        &self,
        workspace: &WorkspaceId,
        opened: &BTreeMap<&'n SecretName, Opened>,
        pins: BTreeSet<(&'n SecretName, u64)>,
    ) -> Result<Option<Versions<'n>>, Error> {
        let mut all = BTreeMap::new();
        let (mut keys, mut kept) = (vec![Key::active_data_key()], vec![]);
        for (name, version) in pins {
            // Whatever does not resolve at all is told by what was opened.
            let Some(Opened::Current(current, stored)) = opened.get(name) else { continue };
            let Some(revision) = stored.metadata.earlier(version) else {
                all.insert((name, version), Err(Cause::VersionMissing(version)));
                continue;
            };
            keys.extend([Key::metadata(name), Key::earlier(stored.metadata.uid, version)]);
            kept.push((name, current, stored, (version, revision)));
        }
        if kept.is_empty() {
            return Ok(Some(all));
        }
        let mut records = self.read_all(workspace, keys).await?.into_iter();
        let mut keys = Keys::unread(self, workspace, records.next().flatten())?;
        for (name, current, stored, wanted) in kept {
            let (metadata, value) = (records.next().flatten(), records.next().flatten());
            if metadata.is_none_or(|now| now.revision != stored.revision) {
                return Ok(None);
            }
            let earlier = keys.open_earlier(name, stored.metadata.uid, wanted, value).await?;
            // When it expires is a matter of the secret, not of one value.
            let payload = Payload { expire_time: current.expire_time, ..earlier };
            all.insert((name, wanted.0), Ok(Arc::new(payload)));
        }
        Ok(Some(all))
    }

    /// Refuses a call if any name does not resolve; with other spellings of
    /// the first that are missing, if the caller may list.
    pub(super) async fn all_resolved(
        &self,
        grants: &Grants,
        workspace: &WorkspaceId,
        mut unresolved: Vec<Unresolved>,
    ) -> Result<(), Error> {
        if unresolved.is_empty() {
            return Ok(());
        }
        if grants.list() {
            let mut known = BTreeMap::new();
            for Unresolved { name, cause, .. } in &mut unresolved {
                let (Some(name), Cause::Missing(suggestion)) = (name, cause) else { continue };
                if let Some(other) = known.get(name) {
                    *suggestion = Option::clone(other);
                } else if known.len() < SUGGESTIONS {
                    *suggestion = self.other_case(workspace, name).await;
                    known.insert(name.clone(), suggestion.clone());
                }
            }
        }
        Err(Error::Unresolved(unresolved))
    }
}

/// The data keys of one call, each asked for once.
struct Keys<'a> {
    secrets: &'a Secrets,
    workspace: &'a WorkspaceId,
    active: Option<Active>,
    /// Nearly always one.
    opened: Vec<Arc<DataKey>>,
}

/// The active data key as it lies in the store.
enum Active {
    Read(WrappedDataKey),
    Unread(UnreadKey),
}

impl Active {
    fn id(&self) -> DataKeyId {
        match self {
            Self::Read(wrapped) => wrapped.id,
            Self::Unread(unread) => unread.id,
        }
    }

    fn wrapped(&self) -> Result<WrappedDataKey, StoreError> {
        match self {
            Self::Read(wrapped) => Ok(wrapped.clone()),
            Self::Unread(unread) => unread.wrapped(),
        }
    }
}

impl<'a> Keys<'a> {
    fn read(secrets: &'a Secrets, workspace: &'a WorkspaceId, active: Option<ActiveKey>) -> Self {
        let active = active.map(|active| Active::Read(active.wrapped));
        Self { secrets, workspace, active, opened: Vec::new() }
    }

    fn unread(
        secrets: &'a Secrets,
        workspace: &'a WorkspaceId,
        active: Option<Record>,
    ) -> Result<Self, Error> {
        let active = active.map(|record| UnreadKey::new(record.bytes).map(Active::Unread));
        Ok(Self { secrets, workspace, active: active.transpose()?, opened: Vec::new() })
    }

    async fn open_value(
        &mut self,
        name: &SecretName,
        metadata: &ValueMetadata,
        value: Option<Record>,
    ) -> Result<Payload, Error> {
        let payload = self.open_at(name, metadata.uid, metadata.value_revision, value).await?;
        // Metadata is not sealed; what it repeats of the sealed value tells
        // whether someone wrote to it.
        if (payload.version, payload.expire_time) != (metadata.version, metadata.expire_time) {
            return Err(Error::RecordCorrupt("metadata differs from the sealed value"));
        }
        Ok(payload)
    }

    /// Of the expiry that was sealed with it the metadata know nothing more.
    async fn open_earlier(
        &mut self,
        name: &SecretName,
        uid: SecretUid,
        (version, revision): (u64, Revision),
        value: Option<Record>,
    ) -> Result<Payload, Error> {
        let payload = self.open_at(name, uid, revision, value).await?;
        if payload.version != version {
            return Err(Error::RecordCorrupt("metadata differs from the sealed value"));
        }
        Ok(payload)
    }

    async fn open_at(
        &mut self,
        name: &SecretName,
        uid: SecretUid,
        revision: Revision,
        value: Option<Record>,
    ) -> Result<Payload, Error> {
        let value = value.ok_or(Error::RecordCorrupt("sealed value absent"))?;
        let record = SealedRecord::parse(value.bytes)?;
        let (environment, workspace) = (&self.secrets.environment, self.workspace);
        let key = self.key(record.data_key_id()).await?;
        let binding = Binding { environment, workspace, uid, name, revision };
        Ok(envelope::open(key, &binding, &record)?)
    }

    /// Has the active key, which nearly all values are sealed with.
    async fn active(&mut self) -> Result<(), Error> {
        match self.active.as_ref().map(Active::id) {
            Some(id) => self.key(id).await.map(drop),
            None => Ok(()),
        }
    }

    async fn key(&mut self, id: DataKeyId) -> Result<&DataKey, Error> {
        let known = self.opened.iter().position(|key| key.id() == id);
        let known = match known {
            Some(known) => known,
            None => {
                let active = self.active.as_ref().filter(|active| active.id() == id);
                let wrapped = || active.map(Active::wrapped);
                let keyring = &self.secrets.keyring;
                self.opened.push(keyring.for_open_with(self.workspace, id, wrapped).await?);
                self.opened.len() - 1
            }
        };
        self.opened.get(known).map(|key| &**key).ok_or(Error::DataKeyMissing)
    }
}
