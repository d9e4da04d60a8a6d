//! Floor 3: what the service does; one file per operation or policy.
//!
//! Every operation goes the same way: authorize, then look, then decide, then
//! change, then write the audit line, then answer.

pub mod access;
pub mod audit;
pub mod seldom;
pub mod shares;
pub mod turns;
pub mod values;

mod admission;
mod change;
mod check;
mod create;
mod delete;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod get;
mod idempotency;
mod keys;
mod lease;
mod limits;
mod list;
mod list_usage;
mod matchers;
mod open;
mod prepare;
mod purge;
mod rates;
mod redact;
mod references;
mod regressions;
mod render;
mod resolve;
mod rollback;
mod stored;
mod trail;
mod undelete;
mod update;
mod usage;
mod versions;

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use check::{
    CandidateCredential, CheckReferences, Checked, CheckedReference, Days, ReferenceState,
};
pub use create::CreateSecret;
pub use delete::DeleteSecret;
pub use error::{Cause, Error, FieldViolation, Unresolved};
pub use get::GetSecret;
pub use keys::{
    DescribeWorkspaceKeys, KeyFate, ReencryptFailure, ReencryptWorkspace, Reencrypted,
    RewrapDataKeys, RewrapFailure, Rewrapped, RotateDataKey, Rotation, ShredWorkspace,
    ShreddedWorkspace, Steps, WorkspaceKeys,
};
pub use lease::{AcquireRefreshLease, Lease, ReleaseRefreshLease};
pub use limits::Limits;
pub use list::{ListSecrets, Page, PageSize};
pub use list_usage::{ListSecretUsage, SecretUsage, UsagePage};
pub use prepare::{Pasted, PrepareTemplate, Prepared, Required, Written};
pub use redact::{OpenRedaction, Redaction, Tally};
pub use references::MAX_REFERENCES;
pub use render::{RenderTemplate, Rendered};
pub use resolve::{Credential, Credentials, MAX_CREDENTIALS, ResolveSecrets, Resolved, Seen};
pub use rollback::RollbackSecret;
pub use stored::SecretView;
pub use trail::{AuditPage, ListAuditEvents};
pub use undelete::UndeleteSecret;
pub use update::{ExpiryChange, UpdateSecret};
pub use versions::{ListSecretVersions, VersionView};

use self::{
    access::{Caller, Grants, Policy},
    admission::Admission,
    audit::{Action, AuditEvent, AuditLog},
    matchers::Matchers,
    rates::Rates,
    stored::{ActiveKey, Deleted, Stored},
    usage::UsageLog,
};
use crate::{
    domain::{Clock, Deadline, Environment, SecretName, Timestamp, WorkspaceId},
    envelope::{Keyring, KeyringConfig},
    kms::Kms,
    metrics::Metrics,
    store::{
        Key, Record, Store, StoreError,
        witness::{ShreddedList, Witness},
    },
};

/// What the operations are made of.
pub struct Parts {
    /// The store.
    pub store: Arc<dyn Store>,
    /// Wraps data keys.
    pub kms: Arc<dyn Kms>,
    /// How long data keys serve.
    pub keyring: KeyringConfig,
    /// Clocks.
    pub clock: Arc<dyn Clock>,
    /// Audit stream.
    pub audit: AuditLog,
    /// Who may do what; swapped when its file changes.
    pub policy: Arc<ArcSwap<Policy>>,
    /// The deployment, bound into every sealed value.
    pub environment: Environment,
    /// Operator's limits.
    pub limits: Limits,
    /// Workspaces that are destroyed whatever the store says.
    pub shredded: Arc<ArcSwap<ShreddedList>>,
}

/// All that the operations need, wired once.
pub struct Secrets {
    store: Arc<dyn Store>,
    /// The same.
    witness: Arc<Witness>,
    keyring: Keyring,
    clock: Arc<dyn Clock>,
    /// Audit stream.
    pub audit: AuditLog,
    policy: Arc<ArcSwap<Policy>>,
    environment: Environment,
    limits: Limits,
    admission: Admission,
    redactions: Rates<WorkspaceId>,
    preparations: Rates<WorkspaceId>,
    matchers: Matchers,
    usage: UsageLog,
    /// Counts and times what is done.
    pub metrics: Metrics,
    /// Changes and streams under way. They go on when their caller hangs up;
    /// shutdown waits for them.
    pub changes: TaskTracker,
    /// Cancelled when no more calls are taken: streams end then.
    pub ending: CancellationToken,
}

impl Secrets {
    /// Wires the operations. One witness stands before the store, for data keys
    /// too: whoever went past it would take what a destroyed workspace has in an
    /// older snapshot.
    pub fn new(parts: Parts) -> Self {
        let Parts { kms, keyring, clock, audit, policy, environment, limits, .. } = parts;
        let witness = Arc::new(Witness::new(parts.store, parts.shredded));
        let store = Arc::clone(&witness) as Arc<dyn Store>;
        let keyring =
            Keyring::new(kms, Arc::clone(&store), Arc::clone(&clock), environment.clone(), keyring);
        Self {
            admission: Admission::new(&limits, &clock),
            redactions: Rates::per_minute(limits.redactions_per_minute, Arc::clone(&clock)),
            preparations: Rates::per_minute(limits.preparations_per_minute, Arc::clone(&clock)),
            matchers: Matchers::default(),
            usage: UsageLog::default(),
            metrics: Metrics::none(),
            changes: TaskTracker::new(),
            ending: CancellationToken::new(),
            store,
            witness,
            keyring,
            clock,
            audit,
            policy,
            environment,
            limits,
        }
    }

    /// The same, but nobody is told who uses what.
    #[must_use]
    pub fn without_usage(self) -> Self {
        Self { usage: UsageLog::off(), ..self }
    }

    /// The same, counted and timed: with its keyring and audit stream, not its
    /// store.
    #[must_use]
    pub fn measured(self, metrics: Metrics) -> Self {
        Self {
            keyring: self.keyring.measured(metrics.clone()),
            audit: self.audit.measured(metrics.clone()),
            metrics,
            ..self
        }
    }

    /// Whether the store can be used now.
    ///
    /// # Errors
    /// It cannot.
    pub async fn health(&self) -> Result<(), StoreError> {
        self.store.health().await
    }

    fn grants(&self, caller: &Caller, workspace: &WorkspaceId) -> Grants {
        self.policy.load().grants(&caller.id, workspace)
    }

    /// Reads `N` records at one moment.
    async fn read<const N: usize>(
        &self,
        workspace: &WorkspaceId,
        keys: [Key; N],
    ) -> Result<[Option<Record>; N], Error> {
        let records = self.read_all(workspace, keys.into()).await?;
        records.try_into().map_err(|_| Error::RecordCorrupt("store answer"))
    }

    /// Reads records at one moment, unless the workspace was destroyed by then.
    async fn read_all(
        &self,
        workspace: &WorkspaceId,
        mut keys: Vec<Key>,
    ) -> Result<Vec<Option<Record>>, Error> {
        keys.push(Key::tombstone());
        let (_, mut records) = self.store.read_at(workspace, &keys).await?;
        match records.pop() {
            Some(None) => Ok(records),
            Some(Some(_)) => Err(Error::WorkspaceShredded),
            None => Err(Error::RecordCorrupt("store answer")),
        }
    }

    /// Writes the audit lines of a call and passes its outcome on. Success
    /// that cannot be audited is withheld; a failure keeps its own reason. They
    /// are handed in even after the deadline, but then not waited for.
    ///
    /// A call refused for the load has none: else a flood would fill the
    /// stream.
    async fn audited<T>(
        &self,
        deadline: Deadline,
        events: Vec<AuditEvent>,
        outcome: Result<T, Error>,
    ) -> Result<T, Error> {
        if outcome.as_ref().is_err_and(Error::is_of_load) {
            return outcome;
        }
        let written = pin!(self.audit.write(events));
        let written = timeout(self.left(deadline), written).await;
        let outcome = outcome?;
        written.map_err(|_| Error::Timeout)?.map_err(|_| Error::AuditUnavailable)?;
        Ok(outcome)
    }

    /// Writes the line of a call that was refused before it touched a secret.
    pub async fn audit_refusal(&self, caller: &Caller, action: Action, error: &Error) {
        let event = AuditEvent::new(self.clock.now(), caller, action, error.reason());
        // The call fails with its own reason, whether or not the line lands.
        let _ = self.audited(caller.deadline, vec![event], Ok(())).await;
    }

    fn event(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        action: Action,
        outcome: &'static str,
    ) -> AuditEvent {
        AuditEvent {
            workspace: Some(workspace.clone()),
            ..AuditEvent::new(self.clock.now(), caller, action, outcome)
        }
    }

    /// A missing secret; with a name that differs only in case, if the caller
    /// may list.
    async fn not_found(
        &self,
        grants: &Grants,
        workspace: &WorkspaceId,
        name: &SecretName,
    ) -> Error {
        let suggestion = if grants.list() { self.other_case(workspace, name).await } else { None };
        Error::NotFound { name: name.clone(), suggestion }
    }

    async fn other_case(&self, workspace: &WorkspaceId, name: &SecretName) -> Option<SecretName> {
        // Bounded, reads keys only, and is silent when the store fails: an
        // error must not cost more than an answer.
        const LOOK_AT: usize = 1_000;
        let first = name.as_str().chars().next()?;
        let cases = BTreeSet::from([first.to_ascii_uppercase(), first.to_ascii_lowercase()]);
        for first in cases {
            let prefix = format!("{}{first}", Key::METADATA);
            let keys = self.store.keys(workspace, &prefix, LOOK_AT).await.ok()?;
            let other = keys
                .iter()
                .filter_map(|key| key.as_str().strip_prefix(Key::METADATA))
                .find(|other| other.eq_ignore_ascii_case(name.as_str()));
            if let Some(other) = other {
                return SecretName::parse(other).ok();
            }
        }
        None
    }
}

/// Who is recorded behind a change.
fn principal(caller: &Caller) -> String {
    caller.actor.as_ref().map_or_else(|| caller.id.to_string(), ToString::to_string)
}

/// When a secret is to stop resolving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// Then.
    At(Timestamp),
    /// So long after the change.
    After(Duration),
}

impl Expiry {
    fn at(expiry: Option<Self>) -> Option<Timestamp> {
        match expiry {
            Some(Self::At(time)) => Some(time),
            _ => None,
        }
    }

    fn after(expiry: Option<Self>) -> Option<Duration> {
        match expiry {
            Some(Self::After(ttl)) => Some(ttl),
            _ => None,
        }
    }

    /// Refuses what has passed and what no time can tell.
    fn moment(self, now: Timestamp) -> Result<Timestamp, Error> {
        match self {
            Self::At(time) if time <= now => {
                Err(Error::field("expire_time", "must lie in the future"))
            }
            Self::At(time) => Ok(time),
            Self::After(ttl) => now
                .checked_add(ttl)
                .ok_or_else(|| Error::field("ttl", "must end before the year 10000")),
        }
    }
}
