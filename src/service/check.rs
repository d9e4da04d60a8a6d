//! CheckReferences: would it resolve?

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{
    Caller, Error, Secrets, Stored,
    admission::Weight,
    audit::Action,
    references::{credential_place, distinct, places},
};
use crate::{
    domain::{Alias, ManagedBy, SecretMetadata, SecretName, Timestamp, WorkspaceId},
    store::Key,
    template::Template,
};

/// Most references of one answer.
const MAX_LISTED: usize = 1_000;

/// References to look at.
pub struct CheckReferences {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// A document.
    pub template: Option<Template>,
    /// A credentials list, right or wrong.
    pub credentials: Vec<CandidateCredential>,
    /// What expires within so many days is told.
    pub expiring_within_days: Days,
}

/// An entry of a credentials list that is not yet known to be right.
pub struct CandidateCredential {
    /// The secret; `None` if that is no name.
    pub secret: Option<SecretName>,
    /// The alias; `None` if that is none.
    pub alias: Option<Alias>,
    /// That version of the secret; `None`: the current one.
    pub version: Option<u64>,
}

/// 0 to 3,650 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days(u16);

impl Days {
    /// Takes a number of days.
    pub fn new(days: i32) -> Option<Self> {
        u16::try_from(days).ok().filter(|days| *days <= 3_650).map(Self)
    }

    fn after(self, now: Timestamp) -> Option<Timestamp> {
        Timestamp::new(now.seconds() + i64::from(self.0) * 24 * 60 * 60, now.nanos())
    }
}

/// What was found.
pub struct Checked {
    /// The references: those of the document, then the credentials.
    pub references: Vec<CheckedReference>,
    /// How many more there are.
    pub unlisted: usize,
    /// Whether a run would get all of them.
    pub resolvable: bool,
}

/// A reference and its state.
pub struct CheckedReference {
    /// Where it stands.
    pub place: String,
    /// The secret; `None` if malformed.
    pub name: Option<SecretName>,
    /// Whether it would resolve.
    pub state: ReferenceState,
    /// Who may change the secret, if it exists.
    pub managed_by: Option<ManagedBy>,
    /// When the secret expires.
    pub expire_time: Option<Timestamp>,
}

/// Whether a reference would resolve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReferenceState {
    /// It would.
    Ok,
    /// No such secret, or not that version of it.
    Missing,
    /// Its expiry has passed.
    Expired,
    /// It would, but not for long.
    Expiring,
    /// No reference, or no name.
    Malformed,
    /// The alias is none.
    AliasInvalid,
    /// Another entry before has the alias.
    AliasDuplicate,
    /// The version asked for is not kept.
    VersionMissing,
}

impl ReferenceState {
    fn resolves(self) -> bool {
        matches!(self, Self::Ok | Self::Expiring)
    }
}

/// What is known of the secrets that are referred to, at one moment.
struct Known<'a> {
    secrets: BTreeMap<&'a SecretName, SecretMetadata>,
    now: Timestamp,
    soon: Option<Timestamp>,
}

impl Known<'_> {
    fn state(&self, name: &SecretName) -> ReferenceState {
        let Some(secret) = self.secrets.get(name) else { return ReferenceState::Missing };
        match secret.expire_time {
            Some(time) if time <= self.now => ReferenceState::Expired,
            Some(time) if self.soon.is_none_or(|soon| time <= soon) => ReferenceState::Expiring,
            _ => ReferenceState::Ok,
        }
    }

    /// The same of one version of it.
    fn state_of(&self, name: &SecretName, version: Option<u64>) -> ReferenceState {
        let kept = |version| {
            self.secrets.get(name).is_some_and(|secret| {
                secret.version == version || secret.earlier_version(version).is_some()
            })
        };
        match self.state(name) {
            state if state.resolves() && !version.is_none_or(kept) => {
                ReferenceState::VersionMissing
            }
            state => state,
        }
    }

    fn checked(
        &self,
        place: String,
        name: Option<&SecretName>,
        state: ReferenceState,
    ) -> CheckedReference {
        let secret = name.and_then(|name| self.secrets.get(name));
        CheckedReference {
            place,
            name: name.cloned(),
            state,
            managed_by: secret.map(|secret| secret.managed_by.clone()),
            expire_time: secret.and_then(|secret| secret.expire_time),
        }
    }
}

impl Secrets {
    /// Tells of each reference whether it would resolve. Opens no value.
    ///
    /// # Errors
    /// [`Error::TooManyReferences`] and those of every call.
    pub async fn check(&self, caller: &Caller, request: CheckReferences) -> Result<Checked, Error> {
        let outcome = self.in_time(caller, self.checked(caller, &request)).await;
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let event = self.event(caller, &request.workspace, Action::Check, reason);
        self.audited(caller.deadline, vec![event], outcome).await
    }

    async fn checked(&self, caller: &Caller, request: &CheckReferences) -> Result<Checked, Error> {
        let CheckReferences { workspace, template, credentials, expiring_within_days } = request;
        let grants = self.grants(caller, workspace);
        if !grants.resolve() && !grants.manage_user() {
            return Err(Error::NotGranted);
        }
        let _place = self.document(caller, workspace)?;
        let _turn = self.turn(caller, workspace, Weight::DOCUMENT).await?;
        let named = credentials.iter().filter_map(|credential| credential.secret.as_ref());
        let names = distinct(template.as_ref(), named)?;
        let now = self.clock.now();
        let secrets = self.metadata_of(workspace, &names).await?;
        let known = Known { secrets, now, soon: expiring_within_days.after(now) };
        Ok(list(template.as_ref(), credentials, &known))
    }

    /// What is known of these secrets, as far as they exist. One store read.
    pub(super) async fn metadata_of<'n>(
        &self,
        workspace: &WorkspaceId,
        names: &BTreeSet<&'n SecretName>,
    ) -> Result<BTreeMap<&'n SecretName, SecretMetadata>, Error> {
        let keys = names.iter().map(|name| Key::metadata(name)).collect();
        let records = self.read_all(workspace, keys).await?;
        let mut known = BTreeMap::new();
        for (name, record) in names.iter().zip(records) {
            if let Some(stored) = Stored::decode(name, record)? {
                known.insert(*name, stored.metadata);
            }
        }
        Ok(known)
    }
}

/// A reference before its place, which takes time to tell, is.
type Entry<'a> = (Option<&'a SecretName>, ReferenceState, Box<dyn Fn() -> String + 'a>);

fn list(
    template: Option<&Template>,
    credentials: &[CandidateCredential],
    known: &Known<'_>,
) -> Checked {
    let mut all: Vec<Entry<'_>> = Vec::new();
    for (name, location) in template.iter().flat_map(|template| places(template)) {
        let state = name.map_or(ReferenceState::Malformed, |name| known.state(name));
        all.push((name, state, Box::new(move || location.place().to_string())));
    }
    let mut aliases = HashSet::new();
    for (index, CandidateCredential { secret, alias, version }) in credentials.iter().enumerate() {
        let state = match (secret, alias) {
            (None, _) => ReferenceState::Malformed,
            (Some(_), None) => ReferenceState::AliasInvalid,
            (Some(_), Some(alias)) if !aliases.insert(alias) => ReferenceState::AliasDuplicate,
            (Some(name), Some(_)) => known.state_of(name, *version),
        };
        all.push((secret.as_ref(), state, Box::new(move || credential_place(index))));
    }
    let resolvable = all.iter().all(|(_, state, _)| state.resolves());
    let unlisted = all.len().saturating_sub(MAX_LISTED);
    if unlisted > 0 {
        all.sort_by_key(|(_, state, _)| state.resolves());
        all.truncate(MAX_LISTED);
    }
    let references =
        all.into_iter().map(|(name, state, place)| known.checked(place(), name, state)).collect();
    Checked { references, unlisted, resolvable }
}
