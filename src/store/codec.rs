//! Record codec: domain types to bytes at rest and back, checked both ways.

mod bookkeeping;
mod requests;

use prost::Message as _;

pub use self::{
    bookkeeping::{decode_lease, decode_usage, encode_lease, encode_usage},
    requests::{Fingerprint, RequestOutcome, decode_request, encode_request},
};
use super::{Key, StoreError};
use crate::domain::{
    ConnectionId, DataKeyId, DeletedSecret, Description, EarlierVersion, Integration, ManagedBy,
    Owner, RequestId, Revision, SecretMetadata, SecretName, SecretUid, Timestamp, TrailEntry,
    ValueMetadata, WrappedDataKey,
};

mod pb {
    #![allow(unreachable_pub, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/workflowsecrets.storage.v1.rs"));
}

/// A data key as it lies in the store.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// The key.
    pub wrapped: WrappedDataKey,
    /// Revision of the workspace when it began to seal, if that is known.
    pub since: Option<Revision>,
    /// When another took its place; `None` for the active one.
    pub retire_time: Option<Timestamp>,
}

impl From<WrappedDataKey> for StoredKey {
    fn from(wrapped: WrappedDataKey) -> Self {
        Self { wrapped, since: None, retire_time: None }
    }
}

/// What is left of a workspace that was destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// When.
    pub time: Timestamp,
    /// By whom: the actor, or else the caller.
    pub by: String,
}

const METADATA: StoreError = StoreError::Malformed("metadata record");
const DELETED: StoreError = StoreError::Malformed("record of a deleted secret");
const TRAIL: StoreError = StoreError::Malformed("trail entry");
const DATA_KEY: StoreError = StoreError::Malformed("data-key record");
const TOMBSTONE: StoreError = StoreError::Malformed("tombstone");

/// Metadata to bytes.
pub fn encode_metadata(secret: &SecretMetadata) -> Vec<u8> {
    metadata_to_pb(secret).encode_to_vec()
}

/// Metadata from the bytes under `m/name`.
///
/// # Errors
/// [`StoreError::Malformed`] also if the record names another secret.
pub fn decode_metadata(name: &SecretName, bytes: &[u8]) -> Result<SecretMetadata, StoreError> {
    let secret =
        pb::SecretMetadata::decode(bytes).ok().and_then(metadata_from_pb).ok_or(METADATA)?;
    if secret.name == *name { Ok(secret) } else { Err(METADATA) }
}

/// What opening a value takes of the bytes under `m/name`: most of them are for
/// people, and most calls are for values.
///
/// # Errors
/// [`StoreError::Malformed`] also if the record names another secret.
pub fn decode_value_metadata(name: &SecretName, bytes: &[u8]) -> Result<ValueMetadata, StoreError> {
    let decode = || {
        let secret = pb::ValueMetadata::decode(bytes).ok()?;
        let expire_time = match secret.expire_time {
            None => None,
            Some(time) => Some(time_from_pb(time)?),
        };
        let earlier = secret.earlier.into_iter();
        let earlier = earlier.map(|one| (one.version, Revision::from_u64(one.value_revision)));
        let earlier: Vec<_> = earlier.collect();
        let numbers = earlier.iter().map(|(number, _)| *number).chain([secret.version]);
        let sound = numbers.is_sorted_by(|one, next| one < next) && secret.version > 0;
        (sound && secret.name == name.as_str()).then_some(ValueMetadata {
            uid: SecretUid::from_bytes(secret.uid.as_ref().try_into().ok()?),
            version: secret.version,
            value_revision: Revision::from_u64(secret.value_revision),
            expire_time,
            earlier,
        })
    };
    decode().ok_or(METADATA)
}

/// A deleted secret to bytes.
pub fn encode_deleted(deleted: &DeletedSecret) -> Vec<u8> {
    pb::DeletedSecret {
        secret: Some(metadata_to_pb(&deleted.metadata)),
        delete_time: Some(time_to_pb(deleted.delete_time)),
        purge_time: Some(time_to_pb(deleted.purge_time)),
    }
    .encode_to_vec()
}

/// A deleted secret from the bytes under `d/name/uid`.
///
/// # Errors
/// [`StoreError::Malformed`] also if the record is another secret's than its
/// key tells.
pub fn decode_deleted(key: &Key, bytes: &[u8]) -> Result<DeletedSecret, StoreError> {
    let decode = || {
        let deleted = pb::DeletedSecret::decode(bytes).ok()?;
        let metadata = metadata_from_pb(deleted.secret?)?;
        (Key::deleted(&metadata.name, metadata.uid) == *key).then_some(DeletedSecret {
            metadata,
            delete_time: time_from_pb(deleted.delete_time?)?,
            purge_time: time_from_pb(deleted.purge_time?)?,
        })
    };
    decode().ok_or(DELETED)
}

/// A trail entry to bytes.
pub fn encode_trail(entry: &TrailEntry) -> Vec<u8> {
    pb::TrailEntry {
        time: Some(time_to_pb(entry.time)),
        action: entry.action.clone(),
        caller: entry.caller.clone(),
        actor: entry.actor.clone(),
        name: entry.name.as_ref().map_or_else(String::new, ToString::to_string),
        uid: entry.uid.map_or_else(Vec::new, |uid| uid.as_bytes().to_vec()),
        version: entry.version,
        restored_version: entry.restored_version,
        request_id: entry.request_id.as_ref().map_or_else(String::new, ToString::to_string),
        trace_id: entry.trace_id.clone(),
    }
    .encode_to_vec()
}

/// A trail entry from bytes.
///
/// # Errors
/// [`StoreError::Malformed`].
pub fn decode_trail(bytes: &[u8]) -> Result<TrailEntry, StoreError> {
    let decode = || {
        let entry = pb::TrailEntry::decode(bytes).ok()?;
        let name = match entry.name.as_str() {
            "" => None,
            name => Some(SecretName::parse(name).ok()?),
        };
        let uid = match entry.uid.len() {
            0 => None,
            _ => Some(SecretUid::from_bytes(entry.uid.try_into().ok()?)),
        };
        let request_id = match entry.request_id.as_str() {
            "" => None,
            id => Some(RequestId::parse(id).ok()?),
        };
        Some(TrailEntry {
            time: time_from_pb(entry.time?)?,
            action: entry.action,
            caller: entry.caller,
            actor: entry.actor,
            name,
            uid,
            version: entry.version,
            restored_version: entry.restored_version,
            request_id,
            trace_id: entry.trace_id,
        })
    };
    decode().ok_or(TRAIL)
}

/// A data key to bytes.
pub fn encode_data_key(key: &StoredKey) -> Vec<u8> {
    let StoredKey { wrapped, since, retire_time } = key;
    pb::DataKey {
        id: wrapped.id.as_bytes().to_vec(),
        wrapped: wrapped.blob.clone(),
        kms_key_id: wrapped.kms_key_id.clone(),
        create_time: Some(time_to_pb(wrapped.create_time)),
        since_revision: since.map_or(0, Revision::as_u64),
        retire_time: retire_time.map(time_to_pb),
    }
    .encode_to_vec()
}

/// A data key from bytes.
///
/// # Errors
/// [`StoreError::Malformed`].
pub fn decode_data_key(bytes: &[u8]) -> Result<StoredKey, StoreError> {
    let decode = || {
        let key = pb::DataKey::decode(bytes).ok()?;
        let wrapped = WrappedDataKey {
            id: DataKeyId::from_bytes(key.id.try_into().ok()?),
            blob: (!key.wrapped.is_empty()).then_some(key.wrapped)?,
            kms_key_id: key.kms_key_id,
            create_time: time_from_pb(key.create_time?)?,
        };
        let since = (key.since_revision > 0).then(|| Revision::from_u64(key.since_revision));
        let retire_time = match key.retire_time {
            None => None,
            Some(time) => Some(time_from_pb(time)?),
        };
        Some(StoredKey { wrapped, since, retire_time })
    };
    decode().ok_or(DATA_KEY)
}

/// A data key in bytes of which only the id was read: whoever has the key in memory
/// needs no more of it.
pub struct UnreadKey {
    /// Its id.
    pub id: DataKeyId,
    bytes: Vec<u8>,
}

impl UnreadKey {
    /// From the bytes of a data key.
    ///
    /// # Errors
    /// [`StoreError::Malformed`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, StoreError> {
        let key = pb::DataKeyHead::decode(bytes.as_slice()).map_err(|_| DATA_KEY)?;
        let id = key.id.as_ref().try_into().map_err(|_| DATA_KEY)?;
        Ok(Self { id: DataKeyId::from_bytes(id), bytes })
    }

    /// The rest of it.
    ///
    /// # Errors
    /// [`StoreError::Malformed`].
    pub fn wrapped(&self) -> Result<WrappedDataKey, StoreError> {
        Ok(decode_data_key(&self.bytes)?.wrapped)
    }
}

/// A tombstone to bytes.
pub fn encode_tombstone(tombstone: &Tombstone) -> Vec<u8> {
    let Tombstone { time, by } = tombstone;
    pb::Tombstone { shred_time: Some(time_to_pb(*time)), shredded_by: by.clone() }.encode_to_vec()
}

/// A tombstone from bytes.
///
/// # Errors
/// [`StoreError::Malformed`].
pub fn decode_tombstone(bytes: &[u8]) -> Result<Tombstone, StoreError> {
    let decode = || {
        let tombstone = pb::Tombstone::decode(bytes).ok()?;
        let time = time_from_pb(tombstone.shred_time?)?;
        Some(Tombstone { time, by: tombstone.shredded_by })
    };
    decode().ok_or(TOMBSTONE)
}

fn metadata_to_pb(secret: &SecretMetadata) -> pb::SecretMetadata {
    let owner = match &secret.managed_by {
        ManagedBy::User => None,
        ManagedBy::System(owner) => Some(pb::Owner {
            integration: owner.integration.to_string(),
            connection_id: owner.connection_id.to_string(),
        }),
    };
    pb::SecretMetadata {
        name: secret.name.to_string(),
        uid: secret.uid.as_bytes().to_vec(),
        description: secret.description.to_string(),
        owner,
        version: secret.version,
        value_revision: secret.value_revision.as_u64(),
        create_time: Some(time_to_pb(secret.create_time)),
        update_time: Some(time_to_pb(secret.update_time)),
        expire_time: secret.expire_time.map(time_to_pb),
        created_by: secret.created_by.clone(),
        updated_by: secret.updated_by.clone(),
        value_create_time: Some(time_to_pb(secret.value_time)),
        value_created_by: secret.value_by.clone(),
        earlier: secret.earlier.iter().map(earlier_to_pb).collect(),
    }
}

fn earlier_to_pb(earlier: &EarlierVersion) -> pb::EarlierVersion {
    pb::EarlierVersion {
        version: earlier.version,
        value_revision: earlier.value_revision.as_u64(),
        create_time: Some(time_to_pb(earlier.create_time)),
        created_by: earlier.created_by.clone(),
    }
}

fn earlier_from_pb(earlier: pb::EarlierVersion) -> Option<EarlierVersion> {
    Some(EarlierVersion {
        version: earlier.version,
        value_revision: Revision::from_u64(earlier.value_revision),
        create_time: time_from_pb(earlier.create_time?)?,
        created_by: earlier.created_by,
    })
}

fn metadata_from_pb(secret: pb::SecretMetadata) -> Option<SecretMetadata> {
    let managed_by = match secret.owner {
        None => ManagedBy::User,
        Some(owner) => ManagedBy::System(Owner {
            integration: Integration::parse(&owner.integration).ok()?,
            connection_id: ConnectionId::parse(&owner.connection_id).ok()?,
        }),
    };
    let expire_time = match secret.expire_time {
        None => None,
        Some(time) => Some(time_from_pb(time)?),
    };
    // Records of the first release do not tell: the last change is the nearest
    // they know of a value that is not the first.
    let (value_time, value_by) = match (secret.value_create_time, secret.version) {
        (Some(time), _) => (time, secret.value_created_by),
        (None, 1) => (secret.create_time?, secret.created_by.clone()),
        (None, _) => (secret.update_time?, secret.updated_by.clone()),
    };
    let earlier: Vec<_> = secret.earlier.into_iter().map(earlier_from_pb).collect::<Option<_>>()?;
    let numbers = earlier.iter().map(|earlier| earlier.version).chain([secret.version]);
    if !numbers.is_sorted_by(|one, next| one < next) {
        return None;
    }
    Some(SecretMetadata {
        name: SecretName::parse(&secret.name).ok()?,
        uid: SecretUid::from_bytes(secret.uid.try_into().ok()?),
        description: Description::parse(&secret.description).ok()?,
        managed_by,
        version: (secret.version > 0).then_some(secret.version)?,
        value_revision: Revision::from_u64(secret.value_revision),
        create_time: time_from_pb(secret.create_time?)?,
        update_time: time_from_pb(secret.update_time?)?,
        expire_time,
        created_by: secret.created_by,
        updated_by: secret.updated_by,
        value_time: time_from_pb(value_time)?,
        value_by,
        earlier,
    })
}

fn time_to_pb(time: Timestamp) -> pb::Time {
    pb::Time { seconds: time.seconds(), nanos: time.nanos() }
}

fn time_from_pb(time: pb::Time) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos)
}

#[cfg(test)]
mod tests;
