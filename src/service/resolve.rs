//! ResolveSecrets: the hot path of every workflow run.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

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

/// Missing names of one call for which another spelling is looked up.
const SUGGESTIONS: usize = 10;

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
        let mut seen = HashSet::new();
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
        let grants = self.grants(caller, workspace);
        if !grants.resolve() {
            return Err(Error::NotGranted);
        }
        // A secret may be wanted under several aliases: it is read once.
        let credentials = &request.credentials.0;
        let names: BTreeSet<_> = credentials.iter().map(|credential| &credential.secret).collect();
        let mut keys = vec![Key::active_data_key()];
        for name in &names {
            keys.extend([Key::metadata(name), Key::value(name)]);
        }
        let mut records = self.read_all(workspace, keys).await?.into_iter();
        let active = ActiveKey::decode(records.next().flatten())?;
        let mut keys = Keys { secrets: self, workspace, active, opened: BTreeMap::new() };
        let records: BTreeMap<_, _> = names
            .into_iter()
            .map(|name| (name, (records.next().flatten(), records.next().flatten())))
            .collect();

        let now = self.clock.now();
        let mut resolved = Vec::with_capacity(credentials.len());
        let mut unresolved = BTreeMap::new();
        for Credential { secret, alias } in credentials {
            let (metadata, value) = records.get(secret).cloned().unwrap_or_default();
            match keys.open(secret, metadata, value, now).await? {
                Ok(payload) => {
                    resolved.push(Resolved { alias: alias.clone(), name: secret.clone(), payload });
                }
                Err(cause) => _ = unresolved.insert(secret.clone(), cause),
            }
        }
        if unresolved.is_empty() {
            return Ok(resolved);
        }
        if grants.list() {
            for (name, cause) in unresolved.iter_mut().take(SUGGESTIONS) {
                if let Cause::Missing(suggestion) = cause {
                    *suggestion = self.other_case(workspace, name).await;
                }
            }
        }
        Err(Error::Unresolved(unresolved.into_iter().collect()))
    }

    /// One line per credential. A call that is not granted touches no secret
    /// and leaves one line, which names the secret if there is but one.
    fn resolve_events(
        &self,
        caller: &Caller,
        request: &ResolveSecrets,
        outcome: &Result<Vec<Resolved>, Error>,
    ) -> Vec<AuditEvent> {
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let line = |secret: Option<&Credential>, version| AuditEvent {
            secret: secret.map(|credential| credential.secret.clone()),
            alias: secret.map(|credential| credential.alias.clone()),
            version,
            workflow_id: request.workflow_id.clone(),
            run_id: request.run_id.clone(),
            ..self.event(caller, &request.workspace, Action::Resolve, reason)
        };
        match (outcome, request.credentials.0.as_slice()) {
            (Err(Error::NotGranted), [only]) => vec![line(Some(only), None)],
            (Err(Error::NotGranted), _) => vec![line(None, None)],
            (Err(_), all) => all.iter().map(|one| line(Some(one), None)).collect(),
            (Ok(resolved), all) => all
                .iter()
                .zip(resolved)
                .map(|(one, resolved)| line(Some(one), Some(resolved.payload.version)))
                .collect(),
        }
    }
}

/// The data keys of one call, each asked for once.
struct Keys<'a> {
    secrets: &'a Secrets,
    workspace: &'a WorkspaceId,
    active: Option<ActiveKey>,
    opened: BTreeMap<DataKeyId, Arc<DataKey>>,
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
            return Ok(Err(Cause::Missing(None)));
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
        let payload = envelope::open(&key, &binding, &record)?;
        // Metadata is not sealed; what it repeats of the sealed value tells
        // whether someone wrote to it.
        let Stored { metadata, .. } = stored;
        if (payload.version, payload.expire_time) != (metadata.version, metadata.expire_time) {
            return Err(Error::RecordCorrupt("metadata differs from the sealed value"));
        }
        Ok(payload)
    }

    async fn key(&mut self, id: DataKeyId) -> Result<Arc<DataKey>, Error> {
        if let Some(key) = self.opened.get(&id) {
            return Ok(Arc::clone(key));
        }
        let active = self.active.as_ref().map(|active| &active.wrapped);
        let key = self.secrets.keyring.for_open(self.workspace, id, active).await?;
        self.opened.insert(id, Arc::clone(&key));
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
