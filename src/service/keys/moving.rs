//! Sealed values that are put elsewhere as they are.

use crate::{
    domain::{DataKeyId, WorkspaceId},
    envelope::SealedRecord,
    service::{ActiveKey, Error, Secrets},
    store::{Expect, Key, Operation, Record, Write},
};

impl Secrets {
    /// What a commit must hold besides that puts a sealed value elsewhere as it
    /// is: if a retired data key sealed it, a write of that key's record, so that
    /// the key is not destroyed by who has not seen the value in its new place.
    /// The commit must check in any case that `active` still is the active key.
    pub(in crate::service) async fn moving(
        &self,
        workspace: &WorkspaceId,
        value: Option<&Record>,
        active: DataKeyId,
    ) -> Result<Option<Operation>, Error> {
        let sealed = value.and_then(|value| SealedRecord::parse(value.bytes.clone()).ok());
        let id = sealed.map(|sealed| sealed.data_key_id()).filter(|id| *id != active);
        let Some(id) = id else { return Ok(None) };
        // Without a record, no key opens the value any more.
        let [record] = self.read(workspace, [Key::data_key(id)]).await?;
        Ok(record.map(|Record { revision, bytes }| Operation {
            key: Key::data_key(id),
            expect: Some(Expect::Revision(revision)),
            write: Write::Put(Record { revision: revision.next(), bytes }),
        }))
    }

    /// The same with that check, for a commit that seals nothing itself.
    pub(in crate::service) async fn only_moving(
        &self,
        workspace: &WorkspaceId,
        value: Option<&Record>,
        active: Option<&ActiveKey>,
    ) -> Result<Vec<Operation>, Error> {
        // Without an active key no other is destroyed.
        let Some(active) = active else { return Ok(vec![]) };
        let unchanged = Operation {
            key: Key::active_data_key(),
            expect: Some(Expect::Revision(active.revision)),
            write: Write::Nothing,
        };
        let touched = self.moving(workspace, value, active.wrapped.id).await?;
        Ok([unchanged].into_iter().chain(touched).collect())
    }
}
