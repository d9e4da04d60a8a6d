//! ResolveSecrets: the hot path of every workflow run.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    pin::pin,
    sync::Arc,
};

use super::{
    Caller, Error, FieldViolation, Secrets, Unresolved,
    admission::Weight,
    audit::{Action, AuditEvent},
    open::{Opened, Versions},
    values::ValueTurn,
};
use crate::{
    domain::{Alias, RunId, SecretName, SecretUid, WorkflowId, WorkspaceId},
    envelope::Payload,
};

/// Most credentials of one call.
pub const MAX_CREDENTIALS: usize = 100;

/// Reads before a secret that is changed time and again is given up.
const ATTEMPTS: usize = 8;

/// A secret and the key under which its value is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The secret.
    pub secret: SecretName,
    /// The key.
    pub alias: Alias,
    /// That version of it; `None`: the current one.
    pub version: Option<u64>,
    /// What the caller has seen of it.
    pub seen: Seen,
}

/// What a caller has seen of a secret, and the store must not know less than.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// It was at this version.
    pub min_version: Option<u64>,
    /// It had this identity.
    pub uid: Option<SecretUid>,
}

/// At most [`MAX_CREDENTIALS`] credentials with distinct aliases.
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
        Self::or_none(credentials)
    }

    /// As [`Self::new`], but there may be none.
    ///
    /// # Errors
    /// Too many, or every alias that stands there twice.
    pub fn or_none(credentials: Vec<Credential>) -> Result<Self, Error> {
        Self::check_count(credentials.len())?;
        if credentials.len() < 2 {
            return Ok(Self(credentials));
        }
        let mut seen = HashSet::with_capacity(credentials.len());
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

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn all(&self) -> &[Credential] {
        &self.0
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
    /// Its identity.
    pub uid: SecretUid,
    /// Value, version and expiry, as sealed together; shared with the other
    /// aliases of the secret.
    pub payload: Arc<Payload>,
    /// Kept until the answer is counted.
    pub turn: ValueTurn,
}

impl Secrets {
    /// Opens the values a run needs: all or nothing.
    ///
    /// One store read, however many names, and one more if earlier versions are
    /// asked for. Nothing is returned before the audit lines, one per
    /// credential, are written.
    ///
    /// # Errors
    /// [`Error::Unresolved`] names every missing or expired secret at once.
    pub async fn resolve(
        &self,
        caller: &Caller,
        request: ResolveSecrets,
    ) -> Result<Vec<Resolved>, Error> {
        let outcome = {
            // Large: pinned where it is made, it is not copied on its way.
            let work = pin!(self.open_all(caller, &request));
            self.in_time(caller, work).await
        };
        let events = self.resolve_events(caller, &request, &outcome);
        self.audited(caller.deadline, events, outcome).await
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
        let credentials = &request.credentials.0;
        let _turn = self.turn(caller, workspace, Weight::of(credentials.len())).await?;
        // A secret may be wanted under several aliases: it is opened once.
        let names = credentials.iter().map(|credential| &credential.secret).collect();
        let mut values = ValueTurn::of(credentials.len());
        let (opened, versions) =
            pin!(self.open_with_versions(workspace, &names, credentials, &mut values)).await?;
        let (names, workflow) = (opened.keys().copied(), request.workflow_id.as_ref());
        self.usage.asked(workspace, names, workflow, self.clock.now());
        let mut unresolved = Vec::new();
        let mut refuse = |name: &SecretName, cause| {
            unresolved.push(Unresolved { name: Some(name.clone()), cause, place: None });
        };
        for (name, opened) in &opened {
            if let Err(cause) = opened.current() {
                refuse(name, cause);
            }
        }
        for ((name, _), version) in &versions {
            if let Err(cause) = version {
                refuse(name, cause.clone());
            }
        }
        for Credential { secret, seen, .. } in credentials {
            if let Some(cause) = opened.get(secret).and_then(|opened| opened.falls_short(seen)) {
                refuse(secret, cause);
            }
        }
        self.all_resolved(&grants, workspace, unresolved).await?;
        let mut all = Vec::with_capacity(credentials.len());
        all.extend(credentials.iter().filter_map(|one| resolved(one, &opened, &versions, &values)));
        Ok(all)
    }

    /// The current values, and the earlier ones that are asked for: these cost
    /// a second read, since the first tells where they lie.
    pub(super) async fn open_with_versions<'n>(
        &self,
        workspace: &WorkspaceId,
        names: &BTreeSet<&'n SecretName>,
        credentials: &'n [Credential],
        turn: &mut ValueTurn,
    ) -> Result<(BTreeMap<&'n SecretName, Opened>, Versions<'n>), Error> {
        for _ in 0..ATTEMPTS {
            let opened = pin!(self.open_in_turn(workspace, names, turn)).await?;
            let mut pins = BTreeSet::new();
            for Credential { secret, version, .. } in credentials {
                if let (Some(pin), Some(Ok(current))) =
                    (*version, opened.get(secret).map(Opened::current))
                    && pin != current.version
                {
                    pins.insert((secret, pin));
                }
            }
            if pins.is_empty() {
                return Ok((opened, Versions::new()));
            }
            if let Some(versions) = self.open_versions(workspace, &opened, pins).await? {
                return Ok((opened, versions));
            }
        }
        Err(Error::ConcurrentUpdate)
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

/// What a credential asks for; `None` if it cannot be had.
pub(super) fn resolved(
    credential: &Credential,
    opened: &BTreeMap<&SecretName, Opened>,
    versions: &Versions<'_>,
    turn: &ValueTurn,
) -> Option<Resolved> {
    let Credential { secret, alias, version, .. } = credential;
    let uid = opened.get(secret)?.uid()?;
    let earlier = version.and_then(|version| versions.get(&(secret, version)));
    let payload = match earlier {
        Some(earlier) => earlier.as_ref().ok()?,
        None => opened.get(secret)?.current().ok()?,
    };
    let (alias, name) = (alias.clone(), secret.clone());
    let (payload, turn) = (Arc::clone(payload), turn.clone());
    Some(Resolved { alias, name, uid, payload, turn })
}
