//! ListSecretUsage.

use super::{
    Caller, Error, Secrets,
    admission::Weight,
    audit::{Action, AuditEvent},
    list::{PAGE_BYTES, PageSize, page_start, page_token},
    usage::stored_usage,
};
use crate::{
    domain::{SecretName, Usage, WorkspaceId},
    store::Key,
};

/// Whose usage to list.
pub struct ListSecretUsage {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// That of this name, whether or not there is such a secret; `None`: that
    /// of all names that runs asked for and that do not exist.
    pub name: Option<SecretName>,
    /// How many names at most.
    pub page_size: PageSize,
    /// Where to go on; empty: at the start.
    pub page_token: String,
}

/// The usage of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretUsage {
    /// The name.
    pub name: SecretName,
    /// There is no such secret.
    pub missing: bool,
    /// Who asked for it.
    pub usage: Usage,
}

/// A page of them, by name in byte order.
#[derive(Debug)]
pub struct UsagePage {
    /// The usage of each name.
    pub usages: Vec<SecretUsage>,
    /// Empty: there are no more.
    pub next_page_token: String,
}

/// Names looked at in each step.
const STEP: usize = 100;

/// Bytes that one name, or one workflow, may take in an answer.
const ENTRY_BYTES: usize = 170;

impl Secrets {
    /// Lists who uses secrets.
    ///
    /// # Errors
    /// A token that belongs to another listing is an invalid field.
    pub async fn list_usage(
        &self,
        caller: &Caller,
        request: ListSecretUsage,
    ) -> Result<UsagePage, Error> {
        let outcome = self.in_time(caller, self.usage_page(caller, &request)).await;
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let event = AuditEvent {
            secret: request.name,
            ..self.event(caller, &request.workspace, Action::ListUsage, reason)
        };
        self.audited(caller.deadline, vec![event], outcome).await
    }

    async fn usage_page(
        &self,
        caller: &Caller,
        request: &ListSecretUsage,
    ) -> Result<UsagePage, Error> {
        let ListSecretUsage { workspace, name, page_size, page_token: token } = request;
        if !self.grants(caller, workspace).list() {
            return Err(Error::NotGranted);
        }
        let _turn = self.turn(caller, workspace, Weight::of(page_size.get())).await?;
        let about = name.as_ref().map_or("", SecretName::as_str);
        let parts = ["ListSecretUsage", caller.id.as_str(), workspace.as_str(), about];
        let start = page_start(&parts, token, |name| SecretName::parse(name).ok())?;
        if let Some(name) = name {
            let keys = [Key::metadata(name), Key::usage(name), Key::wanted(name)];
            let [secret, used, wanted] = self.read(workspace, keys).await?;
            let usage = stored_usage(name, used.as_ref(), wanted.as_ref());
            let usage = SecretUsage { name: name.clone(), missing: secret.is_none(), usage };
            return Ok(UsagePage { usages: vec![usage], next_page_token: String::new() });
        }
        let mut after = start.as_ref().map(Key::wanted);
        let (mut usages, mut bytes) = (Vec::<SecretUsage>::new(), 0);
        loop {
            let records = self.store.scan(workspace, Key::WANTED, after.as_ref(), STEP).await?;
            let exhausted = records.len() < STEP;
            after = records.last().map(|(key, _)| key.clone());
            let names = records.iter().filter_map(|(key, record)| {
                Some((SecretName::parse(key.as_str().strip_prefix(Key::WANTED)?).ok()?, record))
            });
            let names: Vec<_> = names.collect();
            let keys: Vec<_> = names.iter().map(|(name, _)| Key::metadata(name)).collect();
            let secrets = self.read_all(workspace, keys).await?;
            for ((name, record), secret) in names.into_iter().zip(secrets) {
                if secret.is_some() {
                    // Created since, and not asked for since.
                    continue;
                }
                if usages.len() == page_size.get() || bytes >= PAGE_BYTES {
                    let last = usages.last().map(|usage| usage.name.as_str());
                    return Ok(UsagePage { next_page_token: page_token(&parts, last), usages });
                }
                let usage = stored_usage(&name, None, Some(record));
                bytes += ENTRY_BYTES * (1 + usage.workflows().len());
                usages.push(SecretUsage { name, missing: true, usage });
            }
            if exhausted {
                return Ok(UsagePage { usages, next_page_token: String::new() });
            }
        }
    }
}
