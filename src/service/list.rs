//! ListSecrets.

use super::{Caller, Error, SecretView, Secrets, Stored, audit::Action, get::may_see};
use crate::{
    domain::{ManagedBy, Refusal, SecretName, WorkspaceId},
    envelope,
    store::Key,
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

/// Rounds of looking for secrets that may be shown; a page may come back
/// short, or even empty, with a token to go on (AIP-158).
const ROUNDS: usize = 4;

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
        let mut after = request.start(caller)?;
        let mut secrets = Vec::new();
        for _ in 0..ROUNDS {
            // One more than needed tells whether there is a next page.
            let limit = size - secrets.len() + 1;
            let records = self
                .store
                .scan(workspace, Key::METADATA, after.as_ref().map(Key::metadata).as_ref(), limit)
                .await?;
            let exhausted = records.len() < limit;
            for (key, record) in records {
                let name = key.as_str().strip_prefix(Key::METADATA).map(SecretName::parse);
                let Some(Ok(name)) = name else {
                    return Err(Error::RecordCorrupt("metadata key"));
                };
                if secrets.len() == *size {
                    let next_page_token = request.token(caller, after.as_ref());
                    return Ok(Page { secrets, next_page_token });
                }
                let Some(stored) = Stored::decode(&name, Some(record))? else { continue };
                let hidden = !request.show_system_managed
                    && matches!(stored.metadata.managed_by, ManagedBy::System(_));
                if !hidden && may_see(&grants, &stored.metadata) {
                    secrets.push(SecretView::stored(workspace, stored.metadata, stored.revision));
                }
                after = Some(name);
            }
            if exhausted {
                return Ok(Page { secrets, next_page_token: String::new() });
            }
        }
        Ok(Page { secrets, next_page_token: request.token(caller, after.as_ref()) })
    }
}

impl ListSecrets {
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
