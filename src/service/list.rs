//! ListSecrets.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Caller, Deleted, Error, Grants, SecretView, Secrets, Stored, admission::Weight, audit::Action,
    get::may_see,
};
use crate::{
    domain::{ManagedBy, Refusal, SecretMetadata, SecretName, SecretUid, Timestamp, WorkspaceId},
    envelope,
    store::{Key, Record},
};

/// How many secrets a page may have: 1 to 1,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize(usize);

impl PageSize {
    const DEFAULT: usize = 50;
    const MAX: usize = 1_000;

    /// How many.
    pub(super) fn get(self) -> usize {
        self.0
    }

    /// 0 means 50, more than 1,000 means 1,000 (AIP-158).
    ///
    /// # Errors
    /// Negative.
    pub fn parse(size: i32) -> Result<Self, Refusal> {
        match usize::try_from(size) {
            Ok(0) => Ok(Self(Self::DEFAULT)),
            Ok(size) => Ok(Self(size.min(Self::MAX))),
            Err(_) => Err(Refusal::Malformed("must not be negative")),
        }
    }
}

/// A page to list.
pub struct ListSecrets {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// How many at most.
    pub page_size: PageSize,
    /// Where to go on; empty: at the start.
    pub page_token: String,
    /// Also system-managed secrets.
    pub show_system_managed: bool,
    /// Also deleted secrets that may come back.
    pub show_deleted: bool,
    /// Only those that have expired or will within this time.
    pub expiring_within: Option<Duration>,
}

/// A page of secrets, by name in byte order.
pub struct Page {
    /// The secrets.
    pub secrets: Vec<SecretView>,
    /// Empty: there are no more.
    pub next_page_token: String,
}

/// Records looked at in each further step, where many are passed over because
/// they may not be shown. The quota of the workspace bounds the steps.
pub(super) const STEP: usize = 500;

/// Bytes from which a page ends early, so that it fits the 4 MiB that gRPC
/// clients accept unless told otherwise.
pub(super) const PAGE_BYTES: usize = 3 * 1024 * 1024;

/// Bytes that one secret may take in an answer besides its free texts: names,
/// ids and times at their longest, and their tags.
const FIXED_BYTES: usize = 750;

impl Secrets {
    /// Lists secrets without their values.
    ///
    /// # Errors
    /// A token that belongs to another listing is an invalid field.
    pub async fn list(&self, caller: &Caller, request: ListSecrets) -> Result<Page, Error> {
        let outcome = self.in_time(caller, self.page(caller, &request)).await;
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let event = self.event(caller, &request.workspace, Action::List, reason);
        self.audited(caller.deadline, vec![event], outcome).await
    }

    async fn page(&self, caller: &Caller, request: &ListSecrets) -> Result<Page, Error> {
        let ListSecrets { workspace, page_size: PageSize(size), .. } = request;
        let grants = self.grants(caller, workspace);
        if !grants.list() && !grants.any_integration() {
            return Err(Error::NotGranted);
        }
        let _turn = self.turn(caller, workspace, Weight::of(*size)).await?;
        let now = self.clock.now();
        let arguments = request.arguments(caller);
        let mut after = page_start(&arguments, &request.page_token, Place::parse)?;
        let mut secrets: Vec<SecretView> = Vec::new();
        let mut bytes = 0;
        // One more than needed tells whether there is a next page.
        let mut limit = size + 1;
        loop {
            let (found, exhausted) =
                self.step(workspace, request.show_deleted, after.as_ref(), limit).await?;
            for (place, view) in found {
                after = Some(place);
                let Some(view) = view else { continue };
                if !request.shows(&grants, &view, now) {
                    continue;
                }
                if secrets.len() == *size || bytes >= PAGE_BYTES {
                    // The last one shown: a name passed over is told to nobody.
                    let last = secrets.last().map(|view| Place::of(view).0);
                    let next_page_token = page_token(&arguments, last.as_deref());
                    return self.with_usage(workspace, secrets, next_page_token).await;
                }
                let SecretMetadata { description, created_by, updated_by, .. } = &view.metadata;
                let texts = [description.as_str(), created_by, updated_by];
                bytes += FIXED_BYTES + texts.map(str::len).iter().sum::<usize>();
                secrets.push(view);
            }
            if exhausted {
                if secrets.is_empty() {
                    // Nothing is there: perhaps because it was destroyed.
                    let [] = self.read(workspace, []).await?;
                }
                return self.with_usage(workspace, secrets, String::new()).await;
            }
            limit = STEP;
        }
    }

    /// The next secrets in order, and whether these are the last. One that
    /// cannot be read is `None`: a broken record must not hide all others.
    async fn step(
        &self,
        workspace: &WorkspaceId,
        show_deleted: bool,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<(BTreeMap<Place, Option<SecretView>>, bool), Error> {
        let mut found = BTreeMap::new();
        let (now, mut exhausted) = (self.clock.now(), true);
        // What lies beyond the end of the shorter scan is not known yet.
        let mut known_up_to = None;
        let kinds = [Some(Key::METADATA), show_deleted.then_some(Key::DELETED)];
        for kind in kinds.into_iter().flatten() {
            let after = after.map(|place| Key::from_stored(format!("{kind}{}", place.0)));
            let records = self.store.scan(workspace, kind, after.as_ref(), limit).await?;
            let full = records.len() >= limit;
            let mut last = None;
            for (key, record) in records {
                let view = readable(workspace, &key, record, now);
                if view.is_none() {
                    tracing::error!(%key, "metadata record corrupt: not listed");
                }
                let place = Place(key.as_str().get(kind.len()..).unwrap_or_default().to_owned());
                last = Some(place.clone());
                found.insert(place, view);
            }
            if full {
                exhausted = false;
                known_up_to = known_up_to.into_iter().chain(last).min();
            }
        }
        if let Some(last) = known_up_to {
            found.retain(|place, _| *place <= last);
        }
        Ok((found, exhausted))
    }
}

impl Secrets {
    /// A page, complete with what lies elsewhere: one more read.
    async fn with_usage(
        &self,
        workspace: &WorkspaceId,
        secrets: Vec<SecretView>,
        next_page_token: String,
    ) -> Result<Page, Error> {
        let keys: Vec<_> = secrets.iter().map(|view| Key::usage(&view.metadata.name)).collect();
        let usages = self.read_all(workspace, keys).await?;
        let secrets =
            secrets.into_iter().zip(usages).map(|(view, usage)| view.used(usage.as_ref()));
        Ok(Page { secrets: secrets.collect(), next_page_token })
    }
}

/// Where a secret stands in a listing: its name; behind it, if it is deleted,
/// its uid after a slash. In byte order, as the keys of both kinds are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(pub(super) String);

impl Place {
    fn of(view: &SecretView) -> Self {
        let SecretMetadata { name, uid, .. } = &view.metadata;
        match view.deletion {
            None => Self(name.to_string()),
            Some(_) => Self(format!("{name}/{uid}")),
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, uid) =
            text.split_once('/').map_or((text, None), |(name, uid)| (name, Some(uid)));
        SecretName::parse(name).ok()?;
        uid.map(SecretUid::parse).transpose().ok()?;
        Some(Self(text.to_owned()))
    }
}

fn readable(
    workspace: &WorkspaceId,
    key: &Key,
    record: Record,
    now: Timestamp,
) -> Option<SecretView> {
    match key.as_str().strip_prefix(Key::METADATA) {
        Some(name) => {
            let name = SecretName::parse(name).ok()?;
            let stored = Stored::decode(&name, Some(record)).ok()??;
            Some(SecretView::stored(workspace, stored, now))
        }
        None => Some(SecretView::deleted(workspace, Deleted::decode(key, record).ok()?, now)),
    }
}

impl ListSecrets {
    fn shows(&self, grants: &Grants, secret: &SecretView, now: Timestamp) -> bool {
        let SecretView { metadata, deletion, .. } = secret;
        let user_managed = metadata.managed_by == ManagedBy::User;
        let purged = deletion.is_some_and(|(_, purge_time)| purge_time <= now);
        // Past the end of time, all that expire do.
        let expiring = self.expiring_within.is_none_or(|within| {
            let limit = now.checked_add(within);
            metadata.expire_time.is_some_and(|time| limit.is_none_or(|limit| time <= limit))
        });
        (user_managed || self.show_system_managed)
            && !purged
            && expiring
            && may_see(grants, metadata)
    }

    fn arguments(&self, caller: &Caller) -> [String; 6] {
        let shown = if self.show_system_managed { "all" } else { "user" };
        let deleted = if self.show_deleted { "deleted" } else { "" };
        let within = self.expiring_within.map(|within| within.as_nanos().to_string());
        [
            "ListSecrets".to_owned(),
            caller.id.to_string(),
            self.workspace.to_string(),
            shown.to_owned(),
            deleted.to_owned(),
            within.unwrap_or_default(),
        ]
    }
}

/// Ties a token to the caller and the other arguments, so that it cannot be
/// carried into another listing by mistake. It grants nothing: every call is
/// authorized on its own.
fn seal<A: AsRef<str>>(arguments: &[A]) -> String {
    let arguments: Vec<_> = arguments.iter().map(|text| text.as_ref().as_bytes()).collect();
    envelope::digest(&arguments).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The token of the page after this place, for a listing by these arguments.
pub(super) fn page_token<A: AsRef<str>>(arguments: &[A], after: Option<&str>) -> String {
    after.map_or_else(String::new, |after| format!("{}{after}", seal(arguments)))
}

/// The place after which the page of a token starts.
pub(super) fn page_start<A: AsRef<str>, P>(
    arguments: &[A],
    token: &str,
    parse: impl FnOnce(&str) -> Option<P>,
) -> Result<Option<P>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    token.strip_prefix(&seal(arguments)).and_then(parse).map(Some).ok_or_else(|| {
        Error::field("page_token", "must come from the call before, all else unchanged")
    })
}
