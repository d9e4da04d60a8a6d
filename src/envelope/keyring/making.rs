//! Makes data keys: the first of a workspace, and those that take the place of
//! another.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{Inner, KeyError, Outcome, Slot, Wanted};
use crate::{
    domain::{DataKeyId, Revision, WorkspaceId, WrappedDataKey},
    kms::KmsError,
    store::{
        Batch, Commit, Expect, Key, Operation, Record, StoreError, Trail, Write,
        codec::{self, StoredKey},
    },
};

const NOT_ASKED: KeyError = KeyError::Corrupt("the store answered what was not asked");

impl Inner {
    /// The first data key of a workspace, unwrapped.
    pub(super) async fn mint(self: Arc<Self>, workspace: WorkspaceId) -> Outcome {
        let stored = self.store_first(&workspace).await;
        self.proven((workspace, Wanted::First), stored).await
    }

    /// The data key that takes the place of `replaced`, unwrapped. `made` is set
    /// if this put it there.
    pub(super) async fn replace(
        self: Arc<Self>,
        workspace: WorkspaceId,
        replaced: DataKeyId,
        trail: Option<Trail>,
        made: Arc<AtomicBool>,
    ) -> Outcome {
        let stored = self.store_next(&workspace, replaced, trail, &made).await;
        self.proven((workspace, Wanted::Next(replaced)), stored).await
    }

    /// Unwrapping what the store now holds proves that it can be.
    async fn proven(
        self: &Arc<Self>,
        slot: Slot,
        stored: Result<WrappedDataKey, KeyError>,
    ) -> Outcome {
        match stored {
            Ok(active) => {
                let hard_age = self.config.hard_age_write;
                self.key(&slot.0, active.id, || Some(Ok(active.clone())), hard_age).await
            }
            Err(error) => {
                let now = self.clock.monotonic();
                let gone = self.lock().cache.fail(slot, &error, now);
                drop(gone);
                Err(error)
            }
        }
    }

    /// Puts a new data key into an empty workspace, and reads back which one
    /// is there.
    async fn store_first(&self, workspace: &WorkspaceId) -> Result<WrappedDataKey, KeyError> {
        // Tried without a key first: where there can be none, none is made.
        if self.claim(workspace, Write::Nothing).await? {
            let bytes = codec::encode_data_key(&self.generate(workspace).await?.into());
            let record = Record { revision: Revision::initial(), bytes };
            self.claim(workspace, Write::Put(record)).await?;
        }
        Ok(self.active(workspace).await?.0.wrapped)
    }

    /// Writes the active data key of an empty workspace. False: it is not empty;
    /// another replica was faster, or its key is missing.
    async fn claim(&self, workspace: &WorkspaceId, write: Write) -> Result<bool, KeyError> {
        let key = Key::active_data_key();
        let batch = Batch {
            operations: vec![Operation { key, expect: Some(Expect::Absent), write }],
            expect_empty: true,
            ..Batch::default()
        };
        match self.store.commit(workspace, batch).await? {
            Commit::Done => Ok(true),
            Commit::NotEmpty | Commit::Conflict(_) => Ok(false),
            Commit::Shredded => Err(KeyError::Shredded),
            Commit::Replayed(_) | Commit::Full => Err(NOT_ASKED),
        }
    }

    /// Puts a new data key in the place of `replaced`, if that is the active
    /// one, and reads back which one is there.
    async fn store_next(
        &self,
        workspace: &WorkspaceId,
        replaced: DataKeyId,
        trail: Option<Trail>,
        made: &AtomicBool,
    ) -> Result<WrappedDataKey, KeyError> {
        let (old, revision) = self.active(workspace).await?;
        if old.wrapped.id != replaced {
            return Ok(old.wrapped);
        }
        let new = self.generate(workspace).await?;
        // What does not unwrap must not take the place of a key that does.
        self.kms.decrypt(&self.context(workspace, new.id), &new).await?;
        let since = self.store.revision(workspace).await?;
        let new = StoredKey { since, ..new.into() };
        let old = StoredKey { retire_time: Some(self.clock.now()), ..old };
        let put = |key, expect, revision, stored| Operation {
            key,
            expect,
            write: Write::Put(Record { revision, bytes: codec::encode_data_key(stored) }),
        };
        let here = Some(Expect::Revision(revision));
        let operations = vec![
            put(Key::active_data_key(), here, revision.next(), &new),
            put(Key::data_key(replaced), None, Revision::initial(), &old),
        ];
        let batch = Batch { operations, trail, ..Batch::default() };
        match self.store.commit(workspace, batch).await? {
            Commit::Done => made.store(true, Ordering::Relaxed),
            Commit::Conflict(_) => {
                let faster = StoreError::Unavailable("the data key was changed meanwhile");
                let (active, _) = self.active(workspace).await?;
                let rotated = active.wrapped.id != replaced;
                return if rotated { Ok(active.wrapped) } else { Err(faster.into()) };
            }
            Commit::Shredded => return Err(KeyError::Shredded),
            Commit::Replayed(_) | Commit::NotEmpty | Commit::Full => return Err(NOT_ASKED),
        }
        Ok(self.active(workspace).await?.0.wrapped)
    }

    /// The active data key as it lies in the store.
    async fn active(&self, workspace: &WorkspaceId) -> Result<(StoredKey, Revision), KeyError> {
        let mut records = self.records(workspace, [Key::active_data_key()]).await?;
        let record = records.next().ok_or(KeyError::Missing)?;
        Ok((codec::decode_data_key(&record.bytes)?, record.revision))
    }

    async fn generate(&self, workspace: &WorkspaceId) -> Result<WrappedDataKey, KmsError> {
        let context = self.context(workspace, DataKeyId::random());
        let made = self.kms.generate_data_key(&context, self.clock.now()).await?;
        if made.id == context.data_key {
            Ok(made)
        } else {
            Err(KmsError::WrongCiphertext("the KMS made another data key than asked for"))
        }
    }
}
