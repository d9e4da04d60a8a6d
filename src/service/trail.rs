//! The trail of a workspace: each change appends to it in its own commit, and
//! ListAuditEvents reads it.

use super::{
    Caller, Error, Secrets,
    admission::Weight,
    audit::Action,
    list::{PAGE_BYTES, PageSize, STEP, page_start, page_token},
};
use crate::{
    domain::{RequestId, SecretMetadata, SecretName, TrailEntry, WorkspaceId},
    store::{Key, Trail, codec},
};

/// Who is told for what no caller asked for.
const SERVICE: &str = "workflow-secrets";

/// Bytes that one entry may take in an answer besides caller and actor: names,
/// ids and times at their longest, and their tags.
const FIXED_BYTES: usize = 600;

/// A page of the trail.
pub struct ListAuditEvents {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Only what was done to this secret, and to others of the name before it.
    pub name: Option<SecretName>,
    /// How many at most.
    pub page_size: PageSize,
    /// Where to go on; empty: at the newest.
    pub page_token: String,
}

/// Changes, newest first.
pub struct AuditPage {
    /// The changes.
    pub entries: Vec<TrailEntry>,
    /// Empty: there are no more.
    pub next_page_token: String,
}

impl Secrets {
    /// What was changed in a workspace and by whom, newest first.
    ///
    /// # Errors
    /// A token that belongs to another listing is an invalid field.
    pub async fn list_audit_events(
        &self,
        caller: &Caller,
        request: ListAuditEvents,
    ) -> Result<AuditPage, Error> {
        let outcome = self.in_time(caller, self.audit_page(caller, &request)).await;
        let reason = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
        let event = super::AuditEvent {
            secret: request.name.clone(),
            ..self.event(caller, &request.workspace, Action::ListAuditEvents, reason)
        };
        self.audited(caller.deadline, vec![event], outcome).await
    }

    async fn audit_page(
        &self,
        caller: &Caller,
        request: &ListAuditEvents,
    ) -> Result<AuditPage, Error> {
        let ListAuditEvents { workspace, name, page_size, .. } = request;
        if !self.grants(caller, workspace).list() {
            return Err(Error::NotGranted);
        }
        let _turn = self.turn(caller, workspace, Weight::of(page_size.get())).await?;
        let arguments = request.arguments(caller);
        let mut after = page_start(&arguments, &request.page_token, entry_at)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let (mut last, size) = (None, page_size.get());
        // One more than needed tells whether there is a next page.
        let mut limit = size + 1;
        loop {
            let records = self.store.scan(workspace, Key::TRAIL, after.as_ref(), limit).await?;
            let exhausted = records.len() < limit;
            for (key, record) in records {
                after = Some(key.clone());
                let Ok(entry) = codec::decode_trail(&record.bytes) else {
                    tracing::error!(%key, "trail entry corrupt: not listed");
                    continue;
                };
                if name.is_some() && entry.name != *name {
                    continue;
                }
                if entries.len() == size || bytes >= PAGE_BYTES {
                    let next_page_token = page_token(&arguments, last.as_ref().and_then(place));
                    return Ok(AuditPage { entries, next_page_token });
                }
                bytes += FIXED_BYTES + entry.caller.len() + entry.actor.len();
                entries.push(entry);
                last = Some(key);
            }
            if exhausted {
                if entries.is_empty() {
                    // Nothing is there: perhaps because it was destroyed.
                    let [] = self.read(workspace, []).await?;
                }
                return Ok(AuditPage { entries, next_page_token: String::new() });
            }
            limit = STEP;
        }
    }

    /// The entry of a change of a secret, for its batch.
    pub(super) fn trail(
        &self,
        caller: &Caller,
        action: Action,
        secret: &SecretMetadata,
        request_id: Option<&RequestId>,
    ) -> Option<Trail> {
        self.trail_entry(self.entry(caller, action, secret, request_id))
    }

    pub(super) fn entry(
        &self,
        caller: &Caller,
        action: Action,
        secret: &SecretMetadata,
        request_id: Option<&RequestId>,
    ) -> TrailEntry {
        TrailEntry {
            caller: caller.id.to_string(),
            actor: caller.actor.as_ref().map_or_else(String::new, ToString::to_string),
            request_id: request_id.cloned(),
            trace_id: caller.trace_id.as_ref().map_or_else(String::new, ToString::to_string),
            ..self.own_entry(action, secret)
        }
    }

    /// An entry of what the service does to a secret by itself.
    pub(super) fn own_entry(&self, action: Action, secret: &SecretMetadata) -> TrailEntry {
        TrailEntry {
            time: self.clock.now(),
            action: action.as_str().to_owned(),
            caller: SERVICE.to_owned(),
            actor: String::new(),
            name: Some(secret.name.clone()),
            uid: Some(secret.uid),
            version: secret.version,
            restored_version: 0,
            request_id: None,
            trace_id: String::new(),
        }
    }

    /// The entry of what was done to the workspace's keys, for its batch.
    pub(super) fn keys_trail(&self, caller: &Caller, action: Action) -> Option<Trail> {
        self.trail_entry(TrailEntry {
            time: self.clock.now(),
            action: action.as_str().to_owned(),
            caller: caller.id.to_string(),
            actor: caller.actor.as_ref().map_or_else(String::new, ToString::to_string),
            name: None,
            uid: None,
            version: 0,
            restored_version: 0,
            request_id: None,
            trace_id: caller.trace_id.as_ref().map_or_else(String::new, ToString::to_string),
        })
    }

    /// An entry for a batch, unless no trail is kept.
    pub(super) fn trail_entry(&self, entry: TrailEntry) -> Option<Trail> {
        let keep = self.limits.max_audit_events;
        (keep > 0).then(|| Trail { entry: codec::encode_trail(&entry), keep })
    }
}

impl ListAuditEvents {
    fn arguments<'a>(&'a self, caller: &'a Caller) -> [&'a str; 4] {
        let name = self.name.as_ref().map_or("", SecretName::as_str);
        ["ListAuditEvents", caller.id.as_str(), self.workspace.as_str(), name]
    }
}

/// The place of an entry, as a page token tells it.
pub(super) fn place(key: &Key) -> Option<&str> {
    key.as_str().strip_prefix(Key::TRAIL)
}

pub(super) fn entry_at(place: &str) -> Option<Key> {
    let known = place.len() == 16 && place.bytes().all(|byte| byte.is_ascii_digit());
    known.then(|| Key::from_stored(format!("{}{place}", Key::TRAIL)))
}
