//! Record codec: domain types to bytes at rest and back, checked both ways.

mod bookkeeping;

use prost::Message as _;

pub use self::bookkeeping::{decode_lease, decode_usage, encode_lease, encode_usage};
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

/// What a request id stands for.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestOutcome {
    /// Of the request.
    pub fingerprint: Fingerprint,
    /// The answer to give again; `None` for a deletion.
    pub secret: Option<(SecretMetadata, Revision)>,
}

/// Tells whether two requests are the same, without telling what they hold.
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// The hash or HMAC.
    pub digest: [u8; 32],
    /// The data key of the HMAC; `None` for a bare hash of a request without a
    /// value.
    pub data_key: Option<DataKeyId>,
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
const REQUEST: StoreError = StoreError::Malformed("request record");

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

/// The outcome of a request to bytes.
pub fn encode_request(outcome: &RequestOutcome) -> Vec<u8> {
    let (secret, revision) = match &outcome.secret {
        Some((secret, revision)) => (Some(metadata_to_pb(secret)), revision.as_u64()),
        None => (None, 0),
    };
    pb::RequestOutcome {
        fingerprint: outcome.fingerprint.digest.to_vec(),
        data_key_id: outcome
            .fingerprint
            .data_key
            .map_or_else(Vec::new, |id| id.as_bytes().to_vec()),
        secret,
        revision,
    }
    .encode_to_vec()
}

/// The outcome of a request from bytes.
///
/// # Errors
/// [`StoreError::Malformed`].
pub fn decode_request(bytes: &[u8]) -> Result<RequestOutcome, StoreError> {
    let decode = || {
        let outcome = pb::RequestOutcome::decode(bytes).ok()?;
        let data_key = match outcome.data_key_id.len() {
            0 => None,
            _ => Some(DataKeyId::from_bytes(outcome.data_key_id.try_into().ok()?)),
        };
        let secret = match outcome.secret {
            Some(secret) => Some((metadata_from_pb(secret)?, Revision::from_u64(outcome.revision))),
            None => None,
        };
        Some(RequestOutcome {
            fingerprint: Fingerprint { digest: outcome.fingerprint.try_into().ok()?, data_key },
            secret,
        })
    };
    decode().ok_or(REQUEST)
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
mod tests {
    use super::*;

    fn secret() -> SecretMetadata {
        let time = |s| Timestamp::new(s, 5).expect("in range");
        SecretMetadata {
            name: SecretName::parse("STRIPE_KEY").expect("name"),
            uid: SecretUid::random(),
            description: Description::parse("für Zahlungen").expect("description"),
            managed_by: ManagedBy::System(Owner {
                integration: Integration::parse("stripe").expect("integration"),
                connection_id: ConnectionId::parse("acct:1").expect("connection"),
            }),
            version: 3,
            value_revision: Revision::initial(),
            create_time: time(1),
            update_time: time(2),
            expire_time: Some(time(3)),
            created_by: "zoe".into(),
            updated_by: "spiffe://td/x".into(),
            value_time: time(3),
            value_by: "max".into(),
            earlier: vec![earlier(1), earlier(2)],
        }
    }

    fn earlier(version: u64) -> EarlierVersion {
        EarlierVersion {
            version,
            value_revision: Revision::from_u64(version << 60),
            create_time: Timestamp::new(2, 0).expect("in range"),
            created_by: "zoe".into(),
        }
    }

    #[test]
    fn versions_stand_in_their_order() {
        let first = secret();
        for versions in [&[2, 1][..], &[1, 1], &[1, 3], &[4]] {
            let earlier = versions.iter().copied().map(earlier).collect();
            let bytes = encode_metadata(&SecretMetadata { earlier, ..first.clone() });
            assert_eq!(decode_metadata(&first.name, &bytes), Err(METADATA), "{versions:?}");
        }
    }

    #[test]
    fn records_of_the_first_release_are_read() {
        let decode = |version| {
            let mut record = metadata_to_pb(&secret());
            record.version = version;
            record.earlier.clear();
            (record.value_create_time, record.value_created_by) = (None, String::new());
            metadata_from_pb(record).expect("decodes")
        };
        let first = decode(1);
        assert_eq!((first.value_time, first.value_by), (first.create_time, first.created_by));
        let third = decode(3);
        assert_eq!((third.value_time, third.value_by), (third.update_time, third.updated_by));
    }

    #[test]
    fn records_survive_the_round_trip() {
        let secret = secret();
        let bytes = encode_metadata(&secret);
        assert_eq!(decode_metadata(&secret.name, &bytes), Ok(secret.clone()));

        let time = |s| Timestamp::new(s, 5).expect("in range");
        let deleted =
            DeletedSecret { metadata: secret.clone(), delete_time: time(7), purge_time: time(8) };
        let (key, bytes) = (Key::deleted(&secret.name, secret.uid), encode_deleted(&deleted));
        assert_eq!(decode_deleted(&key, &bytes), Ok(deleted));
        let other = Key::deleted(&secret.name, SecretUid::random());
        assert_eq!(decode_deleted(&other, &bytes), Err(DELETED));

        let entry = TrailEntry {
            time: time(9),
            action: "rollback".into(),
            caller: "spiffe://td/x".into(),
            actor: "zoe".into(),
            name: Some(secret.name.clone()),
            uid: Some(secret.uid),
            version: 4,
            restored_version: 2,
            request_id: Some(RequestId::parse("once").expect("id")),
            trace_id: "trace".into(),
        };
        assert_eq!(decode_trail(&encode_trail(&entry)), Ok(entry.clone()));
        let bare = TrailEntry { name: None, uid: None, request_id: None, ..entry };
        assert_eq!(decode_trail(&encode_trail(&bare)), Ok(bare));

        let outcome = RequestOutcome {
            fingerprint: Fingerprint { digest: [9; 32], data_key: Some(DataKeyId::random()) },
            secret: Some((secret, Revision::from_u64(u64::MAX))),
        };
        assert!(decode_request(&encode_request(&outcome)) == Ok(outcome));

        let wrapped = WrappedDataKey {
            id: DataKeyId::random(),
            blob: vec![1, 2, 3],
            kms_key_id: "arn:aws:kms:eu-west-1:1:key/k".into(),
            create_time: Timestamp::new(9, 0).expect("in range"),
        };
        let tombstone =
            Tombstone { time: Timestamp::new(9, 0).expect("in range"), by: "zoe".into() };
        assert_eq!(decode_tombstone(&encode_tombstone(&tombstone)), Ok(tombstone));

        let first = StoredKey::from(wrapped.clone());
        assert!(decode_data_key(&encode_data_key(&first)) == Ok(first));
        let later = StoredKey {
            wrapped,
            since: Some(Revision::from_u64(7)),
            retire_time: Timestamp::new(10, 1),
        };
        assert!(decode_data_key(&encode_data_key(&later)) == Ok(later));
    }

    #[test]
    fn a_record_under_another_name_is_refused() {
        let (other, bytes) =
            (SecretName::parse("OTHER").expect("name"), encode_metadata(&secret()));
        assert_eq!(decode_metadata(&other, &bytes), Err(METADATA));
        assert_eq!(decode_value_metadata(&other, &bytes), Err(METADATA));
    }

    #[test]
    fn what_a_value_needs_is_the_same_as_in_all_of_it() {
        let full = secret();
        for secret in [
            full.clone(),
            SecretMetadata { expire_time: None, earlier: Vec::new(), ..full.clone() },
            SecretMetadata { version: 0, earlier: Vec::new(), ..full.clone() },
            SecretMetadata { earlier: vec![earlier(2), earlier(1)], ..full.clone() },
            SecretMetadata { earlier: vec![earlier(3)], ..full },
        ] {
            let bytes = encode_metadata(&secret);
            let whole = decode_metadata(&secret.name, &bytes);
            let part = decode_value_metadata(&secret.name, &bytes);
            assert_eq!(part, whole.map(|whole| ValueMetadata::from(&whole)), "{secret:?}");
        }
        let record = metadata_to_pb(&secret());
        let damaged = [
            pb::SecretMetadata { uid: vec![1; 15], ..record.clone() },
            pb::SecretMetadata {
                expire_time: Some(pb::Time { seconds: i64::MAX, nanos: 0 }),
                ..record
            },
        ];
        for record in damaged {
            let decoded = decode_value_metadata(&secret().name, &record.encode_to_vec());
            assert_eq!(decoded, Err(METADATA));
        }
    }

    #[test]
    fn a_data_key_is_read_by_and_by() {
        let wrapped = WrappedDataKey {
            id: DataKeyId::random(),
            blob: vec![1, 2, 3],
            kms_key_id: "key".into(),
            create_time: Timestamp::new(9, 0).expect("in range"),
        };
        let bytes = encode_data_key(&wrapped.clone().into());
        let unread = UnreadKey::new(bytes.clone()).ok().expect("has an id");
        assert!(unread.id == wrapped.id && unread.wrapped() == Ok(wrapped));
        assert!(UnreadKey::new(Vec::new()).is_err() && UnreadKey::new(vec![0xff]).is_err());
        // Its head is whole, and its time is not there.
        let head = bytes.get(..18).expect("longer").to_vec();
        assert!(UnreadKey::new(head).is_ok_and(|unread| unread.wrapped() == Err(DATA_KEY)));
    }

    #[test]
    fn truncations_never_pass_for_the_whole() {
        let secret = secret();
        let bytes = encode_metadata(&secret);
        for end in 0..bytes.len() {
            assert_ne!(decode_metadata(&secret.name, &bytes[..end]).as_ref(), Ok(&secret));
        }
        assert!(decode_data_key(&[]).is_err());
        assert!(decode_tombstone(&[]).is_err());
        assert!(decode_request(&[]).is_err());
    }
}
