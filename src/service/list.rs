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
pub(super) const PAGE_BYTES: usize = 3 * 1024 * 1024;

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
        let mut after = page_start(&request.arguments(caller), &request.page_token)?
            .as_ref()
            .map(Key::metadata);
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
                    let next_page_token = page_token(&request.arguments(caller), last);
                    return self.with_usage(workspace, secrets, next_page_token).await;
                }
                let SecretMetadata { description, created_by, updated_by, .. } = &stored.metadata;
                let texts = [description.as_str(), created_by, updated_by];
                bytes += FIXED_BYTES + texts.map(str::len).iter().sum::<usize>();
                secrets.push(SecretView::stored(workspace, stored.metadata, stored.revision));
            }
            if exhausted {
                return self.with_usage(workspace, secrets, String::new()).await;
            }
            limit = STEP;
        }
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
        let usages = self.store.read(workspace, &keys).await?;
        let secrets =
            secrets.into_iter().zip(usages).map(|(view, usage)| view.used(usage.as_ref()));
        Ok(Page { secrets: secrets.collect(), next_page_token })
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
    fn arguments<'a>(&'a self, caller: &'a Caller) -> [&'a str; 4] {
        let shown = if self.show_system_managed { "all" } else { "user" };
        ["ListSecrets", caller.id.as_str(), self.workspace.as_str(), shown]
    }
}

fn seal(arguments: &[&str]) -> String {
    let arguments: Vec<_> = arguments.iter().map(|text| text.as_bytes()).collect();
    envelope::digest(&arguments).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The token of the page after this name, for a listing by these arguments.
pub(super) fn page_token(arguments: &[&str], after: Option<&SecretName>) -> String {
    after.map_or_else(String::new, |name| format!("{}{name}", seal(arguments)))
}

/// The name after which the page of a token starts.
pub(super) fn page_start(arguments: &[&str], token: &str) -> Result<Option<SecretName>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    token
        .strip_prefix(&seal(arguments))
        .and_then(|name| SecretName::parse(name).ok())
        .map(Some)
        .ok_or_else(|| {
            Error::field("page_token", "must come from the call before, all else unchanged")
        })
}
