//! What is known of a secret besides its value.

use uuid::Uuid;

use super::{ConnectionId, Description, Integration, SecretName, SecretUid, Timestamp};

/// Counts the writes of one stored record.
///
/// The first is drawn at random, so that a record deleted and created again
/// never meets a precondition that was meant for its predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

impl Revision {
    /// A first revision: random, with room for 2^63 writes.
    pub fn initial() -> Self {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        // XOR spreads the random bits over UUIDv4's six fixed ones.
        Self((high ^ low.rotate_left(32)) >> 1 | 1)
    }

    /// From its number.
    pub fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The revision of the next write.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// The integration behind a system-managed secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The integration.
    pub integration: Integration,
    /// Its own id of the connection.
    pub connection_id: ConnectionId,
}

/// Who may change a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagedBy {
    /// People, through the platform.
    User,
    /// That integration and nobody else.
    System(Owner),
}

/// An earlier value that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlierVersion {
    /// Its number.
    pub version: u64,
    /// Revision that its sealed value is bound to.
    pub value_revision: Revision,
    /// When it was stored.
    pub create_time: Timestamp,
    /// Who stored it.
    pub created_by: String,
}

/// What List and Get return, and where the values lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretMetadata {
    /// Unique in the workspace.
    pub name: SecretName,
    /// New for each creation.
    pub uid: SecretUid,
    /// For people.
    pub description: Description,
    /// Who may change it.
    pub managed_by: ManagedBy,
    /// Number of values so far.
    pub version: u64,
    /// Revision of the sealed value that belongs to this metadata.
    pub value_revision: Revision,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
    /// From then on it no longer resolves.
    pub expire_time: Option<Timestamp>,
    /// The actor, or else the caller.
    pub created_by: String,
    /// The same for the last change.
    pub updated_by: String,
    /// When the current value was stored.
    pub value_time: Timestamp,
    /// Who stored it.
    pub value_by: String,
    /// The earlier values that are kept, oldest first.
    pub earlier: Vec<EarlierVersion>,
}

impl SecretMetadata {
    /// An earlier value, if it is kept.
    pub fn earlier_version(&self, version: u64) -> Option<&EarlierVersion> {
        self.earlier.iter().find(|earlier| earlier.version == version)
    }
}

/// What it takes of a secret's metadata to open its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueMetadata {
    /// New for each creation.
    pub uid: SecretUid,
    /// Number of values so far.
    pub version: u64,
    /// Revision that the current value is bound to.
    pub value_revision: Revision,
    /// From then on it no longer resolves.
    pub expire_time: Option<Timestamp>,
    /// Number of each earlier value that is kept, and what that is bound to.
    pub earlier: Vec<(u64, Revision)>,
}

impl ValueMetadata {
    /// What an earlier value is bound to, if it is kept.
    pub fn earlier(&self, version: u64) -> Option<Revision> {
        let found = self.earlier.iter().find(|(number, _)| *number == version);
        found.map(|(_, revision)| *revision)
    }
}

impl From<&SecretMetadata> for ValueMetadata {
    fn from(metadata: &SecretMetadata) -> Self {
        let earlier = metadata.earlier.iter().map(|one| (one.version, one.value_revision));
        Self {
            uid: metadata.uid,
            version: metadata.version,
            value_revision: metadata.value_revision,
            expire_time: metadata.expire_time,
            earlier: earlier.collect(),
        }
    }
}

/// A secret that was deleted and may still come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedSecret {
    /// What it was.
    pub metadata: SecretMetadata,
    /// When it was deleted.
    pub delete_time: Timestamp,
    /// From then on it is gone for good.
    pub purge_time: Timestamp,
}

/// Opaque tag that changes with every change of a secret (AIP-154).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etag(String);

impl Etag {
    /// The tag of a secret at a revision of its metadata record.
    pub fn of(uid: SecretUid, revision: Revision) -> Self {
        Self(format!("{uid}-{:x}", revision.0))
    }

    /// A tag as a caller sent it; it either equals a current one or not.
    pub fn received(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
