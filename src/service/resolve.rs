//! ResolveSecrets: the hot path of every workflow run.

use std::collections::BTreeMap;

use super::{
    ActiveKey, Caller, Cause, Error, FieldViolation, Secrets, Stored,
    audit::{Action, AuditEvent},
};
use crate::{
    domain::{Alias, DataKeyId, RunId, SecretName, Timestamp, WorkflowId, WorkspaceId},
    envelope::{self, Binding, DataKey, Payload, SealedRecord},
    store::{Key, Record},
};

/// Most credentials of one call.
pub const MAX_CREDENTIALS: usize = 100;

/// A secret and the key under which its value is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The secret.
    pub secret: SecretName,
    /// The key.
    pub alias: Alias,
}

/// 1 to [`MAX_CREDENTIALS`] credentials with distinct aliases.
pub struct Credentials(Vec<Credential>);

impl Credentials {
    /// Checks number and aliases.
    ///
    /// # Errors
    /// None, too many, or every alias that stands there twice.
    pub fn new(credentials: Vec<Credential>) -> Result<Self, Error> {
        if credentials.is_empty() {
            return Err(Error::field("credentials", "must not be empty"));
        }
        Self::check_count(credentials.len())?;
        let mut seen = std::collections::HashSet::new();
        let twice: Vec<_> = (0..)
            .zip(&credentials)
            .filter(|(_, credential)| !seen.insert(&credential.alias))
            .map(|(i, _): (usize, _)| {
                FieldViolation::new(
                    format!("credentials[{i}].alias"),
                    "must be unique within the call",
                )
            })
            .collect();
        if twice.is_empty() { Ok(Self(credentials)) } else { Err(Error::Invalid(twice)) }
    }

    /// Refuses a number of credentials before any of them is looked at.
    ///
    /// # Errors
    /// [`Error::TooManyCredentials`].
    pub fn check_count(count: usize) -> Result<(), Error> {
        if count > MAX_CREDENTIALS {
            let violation = FieldViolation::new("credentials", "must have at most 100 entries");
            return Err(Error::TooManyCredentials(violation));
        }
        Ok(())
    }
}

/// What a run asks for.
pub struct ResolveSecrets {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The secrets.
    pub credentials: Credentials,
    /// For the audit stream.
    pub workflow_id: Option<WorkflowId>,
    /// For the audit stream.
    pub run_id: Option<RunId>,
}

/// A secret with its value.
pub struct Resolved {
    /// The key.
    pub alias: Alias,
    /// The secret.
    pub name: SecretName,
    /// Value, version and expiry, as sealed together.
    pub payload: Payload,
}

impl Secrets {
    /// Opens the values a run needs: all or nothing.
    ///
    /// One store read, however many names. Nothing is returned before the
    /// audit lines, one per credential, are written.
    ///
    /// # Errors
    /// [`Error::Unresolved`] names every missing or expired secret at once.
    pub async fn resolve(
        &self,
        caller: &Caller,
        request: ResolveSecrets,
    ) -> Result<Vec<Resolved>, Error> {
        let outcome = self.open_all(caller, &request).await;
        let events = self.resolve_events(caller, &request, &outcome);
        self.audited(events, outcome).await
    }

    async fn open_all(
        &self,
        caller: &Caller,
        request: &ResolveSecrets,
    ) -> Result<Vec<Resolved>, Error> {
        let workspace = &request.workspace;
        if !self.grants(caller, workspace).resolve() {
            return Err(Error::NotGranted);
        }
        let credentials = &request.credentials.0;
        let mut keys = vec![Key::active_data_key()];
        for Credential { secret, .. } in credentials {
            keys.extend([Key::metadata(secret), Key::value(secret)]);
        }
        let mut records = self.store.read(workspace, &keys).await?.into_iter();
        let mut keys = Keys { secrets: self, workspace, active: None, opened: BTreeMap::new() };
        keys.active = ActiveKey::decode(records.next().flatten())?;

        let now = self.clock.now();
        let mut resolved = Vec::with_capacity(credentials.len());
        let mut unresolved = Vec::new();
        for Credential { secret, alias } in credentials {
            let (metadata, value) = (records.next().flatten(), records.next().flatten());
            match keys.open(secret, metadata, value, now).await? {
                Ok(payload) => {
                    resolved.push(Resolved { alias: alias.clone(), name: secret.clone(), payload });
                }
                Err(cause) => unresolved.push((secret.clone(), cause)),
            }
        }
        if unresolved.is_empty() {
            return Ok(resolved);
        }
        unresolved.sort_by(|(a, _), (b, _)| a.cmp(b));
        unresolved.dedup();
        Err(Error::Unresolved(unresolved))
    }

    fn resolve_events(
        &self,
        caller: &Caller,
        request: &ResolveSecrets,
        outcome: &Result<Vec<Resolved>, Error>,
    ) -> Vec<AuditEvent> {
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let credentials = request.credentials.0.iter().enumerate();
        credentials
            .map(|(i, credential)| AuditEvent {
                secret: Some(credential.secret.clone()),
                alias: Some(credential.alias.clone()),
                version: outcome
                    .as_ref()
                    .ok()
                    .and_then(|all| all.get(i))
                    .map(|r| r.payload.version),
                workflow_id: request.workflow_id.clone(),
                run_id: request.run_id.clone(),
                ..self.event(caller, &request.workspace, Action::Resolve, reason)
            })
            .collect()
    }
}

/// The data keys of one call, each asked for once.
struct Keys<'a> {
    secrets: &'a Secrets,
    workspace: &'a WorkspaceId,
    active: Option<ActiveKey>,
    opened: BTreeMap<[u8; 16], std::sync::Arc<DataKey>>,
}

impl Keys<'_> {
    async fn open(
        &mut self,
        name: &SecretName,
        metadata: Option<Record>,
        value: Option<Record>,
        now: Timestamp,
    ) -> Result<Result<Payload, Cause>, Error> {
        let Some(stored) = Stored::decode(name, metadata)? else {
            return Ok(Err(Cause::Missing));
        };
        let payload = self.open_value(&stored, value).await?;
        // The expiry that counts is the one sealed with the value.
        if payload.expire_time.is_some_and(|time| time <= now) {
            return Ok(Err(Cause::Expired));
        }
        Ok(Ok(payload))
    }

    async fn open_value(
        &mut self,
        stored: &Stored,
        value: Option<Record>,
    ) -> Result<Payload, Error> {
        let value = value.ok_or(Error::RecordCorrupt("sealed value absent"))?;
        let record = SealedRecord::parse(value.bytes)?;
        let key = self.key(record.data_key_id()).await?;
        let binding = Binding {
            environment: &self.secrets.environment,
            workspace: self.workspace,
            uid: stored.metadata.uid,
            name: &stored.metadata.name,
            revision: stored.metadata.value_revision,
        };
        Ok(envelope::open(&key, &binding, &record)?)
    }

    async fn key(&mut self, id: DataKeyId) -> Result<std::sync::Arc<DataKey>, Error> {
        if let Some(key) = self.opened.get(id.as_bytes()) {
            return Ok(key.clone());
        }
        let active = self.active.as_ref().map(|active| &active.wrapped);
        let key = self.secrets.keyring.for_open(self.workspace, id, active).await?;
        self.opened.insert(*id.as_bytes(), key.clone());
        Ok(key)
    }
}

impl Secrets {
    /// Opens one stored value, to seal it again with other terms.
    pub(super) async fn reopen(
        &self,
        workspace: &WorkspaceId,
        stored: &Stored,
        value: Option<Record>,
        active: Option<ActiveKey>,
    ) -> Result<Payload, Error> {
        let mut keys = Keys { secrets: self, workspace, active, opened: BTreeMap::new() };
        keys.open_value(stored, value).await
    }
}
