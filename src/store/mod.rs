//! Floor 1: records of workspaces. The store sees sealed values only.

pub mod codec;
pub mod embedded;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod redis;
pub mod witness;

mod measured;

use std::{borrow::Cow, collections::HashSet, fmt};

use async_trait::async_trait;

pub use self::measured::MeasuredStore;
use crate::domain::{DataKeyId, RequestId, Revision, SecretName, SecretUid, WorkspaceId};

/// Key of a record within its workspace. It starts with its kind, a word that
/// ends in `/`; keys of one kind sort by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Cow<'static, str>);

impl Key {
    /// Prefix of all metadata keys.
    pub const METADATA: &'static str = "m/";
    /// Prefix of all sealed values.
    pub const VALUE: &'static str = "v/";
    /// Prefix of all sealed values of earlier versions.
    pub const EARLIER: &'static str = "h/";
    /// Prefix of all secrets that were deleted and may come back.
    pub const DELETED: &'static str = "d/";
    /// Prefix of all entries of the trail.
    pub const TRAIL: &'static str = "a/";
    /// What follows all of these: the character after the slash is the zero.
    const TRAIL_END: &'static str = "a0";
    /// Prefix of all data keys.
    pub const DATA_KEY: &'static str = "k/";
    /// Prefix of all refresh leases.
    pub const LEASE: &'static str = "l/";
    /// Prefix of all usage of secrets.
    pub const USAGE: &'static str = "u/";
    /// Prefix of all usage of names without a secret.
    pub const WANTED: &'static str = "w/";

    /// A secret's metadata.
    pub fn metadata(name: &SecretName) -> Self {
        Self::of(Self::METADATA, name)
    }

    /// A secret's sealed value.
    pub fn value(name: &SecretName) -> Self {
        Self::of(Self::VALUE, name)
    }

    /// The sealed value of an earlier version, as it lay under [`Self::value`]:
    /// what it is bound to is not its key. Versions sort by number.
    pub fn earlier(uid: SecretUid, version: u64) -> Self {
        Self(format!("{}{uid}/{version:020}", Self::EARLIER).into())
    }

    /// A deleted secret.
    pub fn deleted(name: &SecretName, uid: SecretUid) -> Self {
        Self(format!("{}{uid}", Self::deleted_named(name)).into())
    }

    /// Prefix of all deleted secrets of a name.
    pub fn deleted_named(name: &SecretName) -> String {
        format!("{}{name}/", Self::DELETED)
    }

    /// The trail entry of the change with this number. The newest sort first;
    /// in Lua's doubles, 2^53 is the end of exact numbers.
    fn trail(number: u64) -> Self {
        Self(format!("{}{:016}", Self::TRAIL, ((1 << 53) - 1_u64).saturating_sub(number)).into())
    }

    /// The data key that seals new values.
    pub fn active_data_key() -> Self {
        Self(Cow::Borrowed("k/active"))
    }

    /// An earlier data key that still opens values.
    pub fn data_key(id: DataKeyId) -> Self {
        Self(format!("{}{id}", Self::DATA_KEY).into())
    }

    /// What is left of a workspace that was destroyed.
    pub fn tombstone() -> Self {
        Self(Cow::Borrowed("t/shredded"))
    }

    /// Mark that a value sealed by this retired data key was put elsewhere.
    pub fn moved(id: DataKeyId) -> Self {
        Self(format!("p/{id}").into())
    }

    /// Mark that earlier versions are told of elsewhere: their secret was deleted
    /// or brought back.
    pub fn retold() -> Self {
        Self(Cow::Borrowed("p/retold"))
    }

    /// The lease on the refresh of a secret.
    pub fn lease(name: &SecretName) -> Self {
        Self::of(Self::LEASE, name)
    }

    /// Who uses a secret.
    pub fn usage(name: &SecretName) -> Self {
        Self::of(Self::USAGE, name)
    }

    /// Who asks for a name under which there is no secret.
    pub fn wanted(name: &SecretName) -> Self {
        Self::of(Self::WANTED, name)
    }

    fn of(kind: &str, name: &SecretName) -> Self {
        Self([kind, name.as_str()].concat().into())
    }

    /// A key as the engine stored it.
    pub fn from_stored(text: String) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A stored record. No `Debug`: its bytes may be ciphertext.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Counts the writes; told by the writer.
    pub revision: Revision,
    /// Opaque to the engine.
    pub bytes: Vec<u8>,
}

impl Record {
    /// The stored form, the same in every engine: revision (8 bytes,
    /// big-endian), bytes.
    fn to_stored(&self) -> Vec<u8> {
        [&self.revision.as_u64().to_be_bytes(), self.bytes.as_slice()].concat()
    }

    // Taken by value, so that the bytes are not copied to another place.
    fn from_stored(mut stored: Vec<u8>) -> Result<Self, StoreError> {
        let revision: &[u8; 8] =
            stored.first_chunk().ok_or(StoreError::Malformed("a record is too short"))?;
        let revision = Revision::from_u64(u64::from_be_bytes(*revision));
        stored.drain(..size_of::<u64>());
        Ok(Self { revision, bytes: stored })
    }
}

/// What a key must be for a batch to be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// There is no record.
    Absent,
    /// There is a record of exactly this revision.
    Revision(Revision),
}

/// What a batch does to a key.
#[derive(Clone, PartialEq, Eq)]
pub enum Write {
    /// Replaces or creates the record.
    Put(Record),
    /// Removes the record.
    Delete,
    /// Only checks the expectation.
    Nothing,
}

/// One key of a batch. Each key may stand in a batch once.
#[derive(Clone)]
pub struct Operation {
    /// The key.
    pub key: Key,
    /// `None`: whatever is there.
    pub expect: Option<Expect>,
    /// What to do.
    pub write: Write,
}

/// How many records of one kind a workspace may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// The kind, such as [`Key::METADATA`].
    pub kind: &'static str,
    /// At most so many.
    pub max: u64,
}

/// What a batch appends to the trail of its workspace.
#[derive(Clone)]
pub struct Trail {
    /// Opaque to the engine, which numbers it by the workspace's revision.
    pub entry: Vec<u8>,
    /// How many entries there may be, at least 1: the oldest make room.
    pub keep: u64,
}

impl Trail {
    /// Entries that one batch drops at most: more than it adds, so that a
    /// smaller number than before is reached soon, and few enough to be quick.
    const DROP: u64 = 100;

    fn record(&self) -> Record {
        Record { revision: Revision::from_u64(1), bytes: self.entry.clone() }
    }
}

/// A change of one workspace, carried out whole or not at all.
#[derive(Clone, Default)]
pub struct Batch {
    /// What to check and do.
    pub operations: Vec<Operation>,
    /// Demands that the workspace has no record of any kind.
    pub expect_empty: bool,
    /// Demands that it is kept afterwards. Not checked for a batch that adds no
    /// record of the kind.
    pub quota: Option<Quota>,
    /// Appended to the trail if the batch is carried out.
    pub trail: Option<Trail>,
    /// Remembers the outcome under this id for 24 hours. If the id is known
    /// already, nothing is done and the remembered outcome comes back.
    pub request: Option<(RequestId, Vec<u8>)>,
    /// Changes no secret: the workspace keeps its revision.
    pub bookkeeping: bool,
    /// No replica need confirm it: it would be no great loss.
    pub hasty: bool,
}

impl Batch {
    /// Whether the workspace gets another revision.
    fn advances(&self) -> bool {
        let changes = |operation: &Operation| operation.write != Write::Nothing;
        !self.bookkeeping && (self.trail.is_some() || self.operations.iter().any(changes))
    }

    /// Engines refuse a batch in which a key stands twice.
    fn check(&self) -> Result<(), StoreError> {
        let mut seen = HashSet::new();
        if self.operations.iter().all(|operation| seen.insert(&operation.key)) {
            Ok(())
        } else {
            Err(StoreError::Malformed("a key stands twice in the batch"))
        }
    }
}

/// The kind of a key.
fn kind(key: &str) -> &str {
    key.split_inclusive('/').next().unwrap_or_default()
}

/// The first revision of a workspace: random, so that one destroyed and made
/// again is not mistaken for what it was. Lua counts in doubles: 2^50 leaves it
/// room for more writes than there will be.
fn first_revision() -> u64 {
    Revision::initial().as_u64() >> 13
}

/// What became of a batch.
#[derive(Clone, PartialEq, Eq)]
pub enum Commit {
    /// All of it was carried out and is acknowledged by the store.
    Done,
    /// The request id is known: nothing was done; the outcome remembered.
    Replayed(Vec<u8>),
    /// An expectation failed on this key: nothing was done.
    Conflict(Key),
    /// `expect_empty` failed: nothing was done.
    NotEmpty,
    /// The quota would be exceeded: nothing was done.
    Full,
    /// The workspace has a tombstone: nothing was done, nor ever will be.
    Shredded,
}

/// What [`Store::shred`] did. No `Debug`: it holds a record.
#[derive(Clone, PartialEq, Eq)]
pub struct Shredded {
    /// Records destroyed by this call.
    pub records: u64,
    /// The tombstone that lies there now.
    pub tombstone: Record,
}

/// Where a listing of workspaces goes on. Opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkspacesCursor(pub String);

/// Why a store call failed. Never holds a record or a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Not reached, timed out, or not able to write now. A commit that fails
    /// so may have been carried out: only a request id tells.
    #[error("store unavailable: {0}")]
    Unavailable(&'static str),
    /// Out of memory or disk: nothing was done.
    #[error("store full")]
    Full,
    /// The commit was carried out, but fewer replicas than demanded have it.
    #[error("write reached {acknowledged} of {demanded} replicas")]
    NotReplicated {
        /// Replicas that confirmed.
        acknowledged: u64,
        /// Replicas demanded.
        demanded: u64,
    },
    /// A record or an answer is not what this service stores.
    #[error("stored data malformed: {0}")]
    Malformed(&'static str),
}

/// Keeps records of workspaces. One behaviour suite runs on every engine
/// (`tests/integration/store_suite.rs`).
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads records, in the order of `keys`, at one moment, and the workspace's
    /// revision at that moment or just after; in one round trip.
    async fn read_at(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<(Option<Revision>, Vec<Option<Record>>), StoreError>;

    /// Carries a batch out, whole or not at all, durably as the engine is set
    /// up. Not cancelled halfway by dropping the future, but the outcome is
    /// then unknown. With it comes the revision that the workspace got by it, if
    /// it got one.
    async fn commit_at(
        &self,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(Commit, Option<Revision>), StoreError>;

    /// [`Self::read_at`] without the revision. Reading nothing asks nothing.
    async fn read(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<Vec<Option<Record>>, StoreError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.read_at(workspace, keys).await?.1)
    }

    /// [`Self::commit_at`] without the revision.
    async fn commit(&self, workspace: &WorkspaceId, batch: Batch) -> Result<Commit, StoreError> {
        Ok(self.commit_at(workspace, batch).await?.0)
    }

    /// Tells states of a workspace apart: greater after each batch that puts or
    /// deletes, bookkeeping apart, whoever commits it. `None` before the first.
    /// What was read after
    /// the revision was, and is kept under it, may be used while the revision
    /// stays the same.
    async fn revision(&self, workspace: &WorkspaceId) -> Result<Option<Revision>, StoreError>;

    /// Destroys all records of a workspace and all remembered outcomes for good,
    /// and leaves this tombstone under [`Key::tombstone`]. From the moment the
    /// records are gone, in one step, every commit is answered
    /// [`Commit::Shredded`]. A tombstone that lies there already stays; a call
    /// that failed may be repeated, and then ends what the first began.
    async fn shred(
        &self,
        workspace: &WorkspaceId,
        tombstone: Record,
    ) -> Result<Shredded, StoreError>;

    /// The outcome remembered under a request id.
    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError>;

    /// Records whose key starts with `prefix` and is greater than `after`, in
    /// byte order, at most `limit`.
    async fn scan(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError>;

    /// Keys that start with `prefix`, in byte order, at most `limit`. Reads no
    /// record, so it costs far less than [`Self::scan`].
    async fn keys(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError>;

    /// Workspaces that have records, in no order; each at least once while
    /// none is added or removed. `None` starts; no cursor back ends.
    async fn workspaces(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError>;

    /// Whether the store can be reached and written to now.
    async fn health(&self) -> Result<(), StoreError>;
}
