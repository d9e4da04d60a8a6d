//! ListSecrets.

use super::{Caller, Error, Grants, SecretView, Secrets, Stored, audit::Action, get::may_see};
use crate::{
    domain::{ManagedBy, Refusal, SecretMetadata, SecretName, WorkspaceId},
    envelope,
    store::{Key, Record},
};

/// How many secrets a page may have: 1 to 1,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize(usize);

impl PageSize {
    const DEFAULT: usize = 50;
    const MAX: usize = 1_000;

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
const STEP: usize = 500;

/// Bytes from which a page ends early, so that it fits the 4 MiB that gRPC
/// clients accept unless told otherwise.
const PAGE_BYTES: usize = 3 * 1024 * 1024;

/// Bytes that one secret may take in an answer besides its free texts: names,
/// ids and times at their longest, and their tags.
const FIXED_BYTES: usize = 700;

impl Secrets {
    /// Lists secrets without their values.
    ///
    /// # Errors
    /// A token that belongs to another listing is an invalid field.
    pub async fn list(&self, caller: &Caller, request: ListSecrets) -> Result<Page, Error> {
        let outcome = self.page(caller, &request).await;
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let event = self.event(caller, &request.workspace, Action::List, reason);
        self.audited(vec![event], outcome).await
    }

    async fn page(&self, caller: &Caller, request: &ListSecrets) -> Result<Page, Error> {
        let ListSecrets { workspace, page_size: PageSize(size), .. } = request;
        let grants = self.grants(caller, workspace);
        if !grants.list() && !grants.any_integration() {
            return Err(Error::NotGranted);
        }
        let mut after = request.start(caller)?.as_ref().map(Key::metadata);
        let mut secrets: Vec<SecretView> = Vec::new();
        let mut bytes = 0;
        // One more than needed tells whether there is a next page.
        let mut limit = size + 1;
        loop {
            let records = self.store.scan(workspace, Key::METADATA, after.as_ref(), limit).await?;
            let exhausted = records.len() < limit;
            for (key, record) in records {
                after = Some(key.clone());
                let Some(stored) = readable(&key, record) else { continue };
                if !request.shows(&grants, &stored.metadata) {
                    continue;
                }
                if secrets.len() == *size || bytes >= PAGE_BYTES {
                    // The last one shown: a name passed over is told to nobody.
                    let last = secrets.last().map(|secret| &secret.metadata.name);
                    let next_page_token = request.token(caller, last);
                    return Ok(Page { secrets, next_page_token });
                }
                let SecretMetadata { description, created_by, updated_by, .. } = &stored.metadata;
                let texts = [description.as_str(), created_by, updated_by];
                bytes += FIXED_BYTES + texts.map(str::len).iter().sum::<usize>();
                secrets.push(SecretView::stored(workspace, stored.metadata, stored.revision));
            }
            if exhausted {
                if secrets.is_empty() {
                    // Nothing is there: perhaps because it was destroyed.
                    let [] = self.read(workspace, []).await?;
                }
                return Ok(Page { secrets, next_page_token: String::new() });
            }
            limit = STEP;
        }
    }
}

/// Metadata that can be read. One broken record must not hide all others.
fn readable(key: &Key, record: Record) -> Option<Stored> {
    let name = SecretName::parse(key.as_str().strip_prefix(Key::METADATA)?).ok();
    let stored = name.and_then(|name| Stored::decode(&name, Some(record)).ok().flatten());
    if stored.is_none() {
        tracing::error!(%key, "metadata record corrupt: not listed");
    }
    stored
}

impl ListSecrets {
    fn shows(&self, grants: &Grants, secret: &SecretMetadata) -> bool {
        let user_managed = secret.managed_by == ManagedBy::User;
        (user_managed || self.show_system_managed) && may_see(grants, secret)
    }

    /// Ties a token to the caller and the other arguments, so that it cannot
    /// be carried into another listing by mistake. It grants nothing: every
    /// call is authorized on its own.
    fn seal_of_arguments(&self, caller: &Caller) -> String {
        let shown = if self.show_system_managed { "all" } else { "user" };
        let digest = envelope::digest(&[
            b"ListSecrets",
            caller.id.as_str().as_bytes(),
            self.workspace.as_str().as_bytes(),
            shown.as_bytes(),
        ]);
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    fn token(&self, caller: &Caller, after: Option<&SecretName>) -> String {
        after.map_or_else(String::new, |name| format!("{}{name}", self.seal_of_arguments(caller)))
    }

    fn start(&self, caller: &Caller) -> Result<Option<SecretName>, Error> {
        if self.page_token.is_empty() {
            return Ok(None);
        }
        self.page_token
            .strip_prefix(&self.seal_of_arguments(caller))
            .and_then(|name| SecretName::parse(name).ok())
            .map(Some)
            .ok_or_else(|| {
                Error::field("page_token", "must come from the call before, all else unchanged")
            })
    }
}
