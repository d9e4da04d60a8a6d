//! Earlier values of a secret: how they are kept, and ListSecretVersions.

use super::{Caller, Error, Secrets, Stored, admission::Weight, audit::Action, get::may_see};
use crate::{
    domain::{EarlierVersion, ManagedBy, SecretMetadata, SecretName, Timestamp, WorkspaceId},
    store::{Key, Operation, Record, Write},
};

/// A secret whose versions are asked for.
pub struct ListSecretVersions {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The name.
    pub name: SecretName,
}

/// What is known of one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionView {
    /// Its number.
    pub version: u64,
    /// When it was stored.
    pub create_time: Timestamp,
    /// Who stored it.
    pub created_by: String,
    /// Whether it is the one that resolves unless another is asked for.
    pub current: bool,
}

impl Secrets {
    /// The current and the earlier values that are kept, newest first; never
    /// what they are.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for a secret the caller may not see.
    pub async fn list_versions(
        &self,
        caller: &Caller,
        request: ListSecretVersions,
    ) -> Result<Vec<VersionView>, Error> {
        let outcome = self.in_time(caller, self.versions(caller, &request)).await;
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let event = super::AuditEvent {
            secret: Some(request.name),
            ..self.event(caller, &request.workspace, Action::ListVersions, reason)
        };
        self.audited(caller.deadline, vec![event], outcome).await
    }

    async fn versions(
        &self,
        caller: &Caller,
        request: &ListSecretVersions,
    ) -> Result<Vec<VersionView>, Error> {
        let ListSecretVersions { workspace, name } = request;
        let grants = self.grants(caller, workspace);
        if !grants.list() && !grants.any_integration() {
            return Err(Error::NotGranted);
        }
        let _turn = self.turn(caller, workspace, Weight::LIGHT).await?;
        let [record] = self.read(workspace, [Key::metadata(name)]).await?;
        match Stored::decode(name, record)? {
            Some(stored) if may_see(&grants, &stored.metadata) => Ok(views(stored.metadata)),
            _ => Err(self.not_found(&grants, workspace, name).await),
        }
    }

    /// Keeps the value that is replaced, and drops the oldest ones that have no
    /// room beside it: `metadata` are those of the new value, `old` and `value`
    /// what it replaces. Of system-managed secrets none is kept: a revoked
    /// token must not linger.
    pub(super) fn keep_version(
        &self,
        metadata: &mut SecretMetadata,
        old: &SecretMetadata,
        value: Option<Record>,
    ) -> Vec<Operation> {
        let keep = match &metadata.managed_by {
            ManagedBy::User => self.limits.max_versions,
            ManagedBy::System(_) => 0,
        };
        let uid = metadata.uid;
        let mut operations = vec![];
        if let (1.., Some(value)) = (keep, value) {
            metadata.earlier.push(current(old));
            let key = Key::earlier(uid, old.version);
            operations.push(Operation { key, expect: None, write: Write::Put(value) });
        }
        let surplus = metadata.earlier.len().saturating_sub(keep);
        operations.extend(metadata.earlier.drain(..surplus).map(|dropped| Operation {
            key: Key::earlier(uid, dropped.version),
            expect: None,
            write: Write::Delete,
        }));
        operations
    }
}

/// The current value, as it is told of once it is an earlier one.
fn current(metadata: &SecretMetadata) -> EarlierVersion {
    EarlierVersion {
        version: metadata.version,
        value_revision: metadata.value_revision,
        create_time: metadata.value_time,
        created_by: metadata.value_by.clone(),
    }
}

fn views(metadata: SecretMetadata) -> Vec<VersionView> {
    let newest = current(&metadata);
    let view = |version: EarlierVersion, current| VersionView {
        version: version.version,
        create_time: version.create_time,
        created_by: version.created_by,
        current,
    };
    let earlier = metadata.earlier.into_iter().rev().map(|earlier| view(earlier, false));
    [view(newest, true)].into_iter().chain(earlier).collect()
}
