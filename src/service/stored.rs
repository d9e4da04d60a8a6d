//! What lies in the store, read; and a secret as callers see it.

use super::{Error, usage};
use crate::{
    domain::{
        DeletedSecret, Etag, Revision, SecretMetadata, SecretName, Timestamp, WorkspaceId,
        WrappedDataKey,
    },
    store::{Key, Record, codec},
};

/// A secret as callers see it: metadata and etag, never the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretView {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// What is known of it.
    pub metadata: SecretMetadata,
    /// `None` in the answer to a `validate_only` call.
    pub etag: Option<Etag>,
    /// When it was deleted, and when it will be gone for good.
    pub deletion: Option<(Timestamp, Timestamp)>,
    /// Whether its expiry has passed.
    pub expired: bool,
    /// When a run last asked for it; told by Get and List only.
    pub last_resolve_time: Option<Timestamp>,
}

impl SecretView {
    pub(super) fn stored(workspace: &WorkspaceId, stored: Stored, now: Timestamp) -> Self {
        let Stored { metadata, revision } = stored;
        let etag = Some(Etag::of(metadata.uid, revision));
        Self { etag, ..Self::preview(workspace, metadata, now) }
    }

    pub(super) fn preview(
        workspace: &WorkspaceId,
        metadata: SecretMetadata,
        now: Timestamp,
    ) -> Self {
        let expired = metadata.expire_time.is_some_and(|time| time <= now);
        Self {
            workspace: workspace.clone(),
            metadata,
            etag: None,
            deletion: None,
            expired,
            last_resolve_time: None,
        }
    }

    pub(super) fn deleted(workspace: &WorkspaceId, deleted: Deleted, now: Timestamp) -> Self {
        let Deleted { secret, revision } = deleted;
        let deletion = Some((secret.delete_time, secret.purge_time));
        let stored = Stored { metadata: secret.metadata, revision };
        Self { deletion, ..Self::stored(workspace, stored, now) }
    }

    /// With its usage. What was before its creation was of another secret of
    /// this name. A deleted secret has none: it is of who has the name now.
    pub(super) fn used(mut self, usage: Option<&Record>) -> Self {
        if self.deletion.is_some() {
            return self;
        }
        let usage = usage::stored_usage(&self.metadata.name, usage, None);
        self.last_resolve_time = usage.last().filter(|time| *time >= self.metadata.create_time);
        self
    }
}

/// Metadata as it lies in the store.
pub(super) struct Stored {
    pub(super) metadata: SecretMetadata,
    pub(super) revision: Revision,
}

impl Stored {
    pub(super) fn decode(name: &SecretName, record: Option<Record>) -> Result<Option<Self>, Error> {
        let Some(record) = record else { return Ok(None) };
        let metadata = codec::decode_metadata(name, &record.bytes)?;
        Ok(Some(Self { metadata, revision: record.revision }))
    }
}

/// A deleted secret as it lies in the store.
pub(super) struct Deleted {
    pub(super) secret: DeletedSecret,
    pub(super) revision: Revision,
}

impl Deleted {
    pub(super) fn decode(key: &Key, record: Record) -> Result<Self, Error> {
        let secret = codec::decode_deleted(key, &record.bytes)?;
        Ok(Self { secret, revision: record.revision })
    }
}

/// The active data key as it lies in the store.
#[derive(Clone)]
pub(super) struct ActiveKey {
    pub(super) wrapped: WrappedDataKey,
    pub(super) revision: Revision,
}

impl ActiveKey {
    pub(super) fn decode(record: Option<Record>) -> Result<Option<Self>, Error> {
        let Some(record) = record else { return Ok(None) };
        let wrapped = codec::decode_data_key(&record.bytes)?.wrapped;
        Ok(Some(Self { wrapped, revision: record.revision }))
    }
}
