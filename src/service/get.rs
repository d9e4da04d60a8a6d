//! GetSecret.

use super::{Caller, Error, Grants, SecretView, Secrets, Stored, admission::Weight, audit::Action};
use crate::{
    domain::{ManagedBy, SecretMetadata, SecretName, WorkspaceId},
    store::Key,
};

/// A secret to look at.
pub struct GetSecret {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The name.
    pub name: SecretName,
}

/// Whether the caller may see the metadata: an integration sees only the
/// system-managed secrets of the integrations it names.
pub(super) fn may_see(grants: &Grants, secret: &SecretMetadata) -> bool {
    match &secret.managed_by {
        _ if grants.list() => true,
        ManagedBy::User => false,
        ManagedBy::System(owner) => grants.integration(&owner.integration),
    }
}

impl Secrets {
    /// What is known of a secret, never its value.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for a secret the caller may not see.
    pub async fn get(&self, caller: &Caller, request: GetSecret) -> Result<SecretView, Error> {
        let outcome = self.in_time(caller, self.find(caller, &request)).await;
        let (reason, version) = match &outcome {
            Ok(view) => ("ok", Some(view.metadata.version)),
            Err(error) => (error.reason(), None),
        };
        let event = super::AuditEvent {
            secret: Some(request.name),
            version,
            ..self.event(caller, &request.workspace, Action::Get, reason)
        };
        self.audited(caller.deadline, vec![event], outcome).await
    }

    async fn find(&self, caller: &Caller, request: &GetSecret) -> Result<SecretView, Error> {
        let GetSecret { workspace, name } = request;
        let grants = self.grants(caller, workspace);
        if !grants.list() && !grants.any_integration() {
            return Err(Error::NotGranted);
        }
        let _turn = self.turn(caller, workspace, Weight::LIGHT).await?;
        let [record, usage] = self.read(workspace, [Key::metadata(name), Key::usage(name)]).await?;
        match Stored::decode(name, record)? {
            Some(stored) if may_see(&grants, &stored.metadata) => {
                let view = SecretView::stored(workspace, stored, self.clock.now());
                Ok(view.used(usage.as_ref()))
            }
            _ => Err(self.not_found(&grants, workspace, name).await),
        }
    }
}
