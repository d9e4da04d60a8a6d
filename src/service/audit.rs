//! The audit stream: who did what to which secret.
//!
//! | Call | Lines |
//! |---|---|
//! | Create, Get, Update, Delete, Undelete, Rollback, ListSecretVersions, AcquireRefreshLease, ReleaseRefreshLease | one, with the secret, also if it is not granted or fails |
//! | List, Check, and each call of KeyService | one, without a secret; two of Reencrypt and Rewrap, with outcome `started` and at the end |
//! | ListSecretUsage | one, with the secret if it asks for one |
//! | ListAuditEvents | one, with the secret if the call names one |
//! | Resolve | one per credential, with the outcome of the call |
//! | Resolve that is not granted | one; with the secret if the call names only one |
//! | Render | one per name in the document and one per credential, with the outcome of the call |
//! | Prepare | one, without a secret, and one per secret whose value was found |
//! | Redact | when it opens, one per name, or one without a secret for all; when it ends, one per secret whose value was found |
//! | Render, Prepare or Redact that is not granted or asks for too much | one, without a secret |
//! | fields or metadata refused before anything is looked up | one, without workspace and secret |
//! | no call: the store has gone back | one per workspace, within seconds of the call that saw it |
//! | no identity | none, or anybody could fill the stream: the log tells of them |
//! | a message that does not decode or is too large; `UNIMPLEMENTED`; a call whose deadline has passed when it comes | none |
//! | `OVERLOADED`, `RATE_LIMITED` | none, or a flood would fill the stream: the log tells of them |
//!
//! A call that comes to its deadline leaves its lines, with `TIMEOUT`. A change
//! goes on if its commit was begun by then; its line tells what became of it. A
//! call given up by its client goes on if it is a change; any other leaves its
//! lines only if they were handed in by then. Without them no value leaves.
//!
//! Each line is a JSON object in pure ASCII (other characters as `\u` escapes,
//! so that no log shipper splits or reorders a line). Fields, those not known
//! left out:
//!
//! | Field | Holds |
//! |---|---|
//! | `time` | RFC 3339, UTC, milliseconds |
//! | `action` | `create`, `get`, `update`, `delete`, `undelete`, `rollback`, `list`, `list_versions`, `list_usage`, `list_audit_events`, `resolve`, `render`, `check`, `prepare`, `redact`, `acquire_lease`, `release_lease`, `describe_keys`, `rotate_data_key`, `reencrypt`, `rewrap_data_keys` or `shred`; `store_regressed` |
//! | `outcome` | `ok`; `validated`: `validate_only`, nothing was stored; `found`: the value was, in a template or stream; `older` or `shredded_data_back` of `store_regressed`; or the reason of the error (`NOT_GRANTED`, ...) |
//! | `caller` | SPIFFE id of the client's certificate, `workflow-secrets` for no call; in every line |
//! | `actor` | the person behind the call, as the caller tells it; not proven |
//! | `workspace`, `secret`, `version` | what was touched |
//! | `alias` | resolve, render: the key under which the value was returned |
//! | `matches` | prepare, redact: how often the value was found |
//! | `workflow_id`, `run_id` | resolve, render, redact: as the caller tells them |
//! | `holder` | acquire_lease: for whom, as the caller tells it |
//! | `trace_id` | W3C trace id, as the caller tells it |
//!
//! No field has a type for secret values. Names, ids and actors are as callers
//! tell them: whoever puts a value where a name belongs finds it here.
//!
//! A line whose call was told [`AuditUnavailable`] may still have been written,
//! or be written later. After a failed write the stream may hold part of a
//! line; the next line starts on a line of its own.

mod line;
mod log;
mod output;

pub use self::log::{AuditConfig, AuditLog, AuditSink, AuditUnavailable};
use super::access::Caller;
use crate::domain::{
    Actor, Alias, CallerId, LeaseHolder, RunId, SecretName, Timestamp, TraceId, WorkflowId,
    WorkspaceId,
};

/// What a call did to one secret, or tried to; to a whole workspace, if it is
/// a List; or how it was refused.
#[derive(Debug, Clone)]
pub struct AuditEvent {
    /// When.
    pub time: Timestamp,
    /// Who.
    pub caller: CallerId,
    /// The person behind the caller, unproven.
    pub actor: Option<Actor>,
    /// Where; `None` if fields of the call were refused.
    pub workspace: Option<WorkspaceId>,
    /// Which secret; `None` also for List, and for a Resolve of several that is
    /// not granted.
    pub secret: Option<SecretName>,
    /// Which version was read or written.
    pub version: Option<u64>,
    /// What.
    pub action: Action,
    /// `ok`; `validated`, if nothing was to be stored; or the reason of the
    /// error.
    pub outcome: &'static str,
    /// Resolve, Render: the key of the value in the answer.
    pub alias: Option<Alias>,
    /// Prepare, Redact: how often the secret's value was found.
    pub matches: Option<u64>,
    /// Resolve, Render, Redact: for which workflow.
    pub workflow_id: Option<WorkflowId>,
    /// Resolve, Render, Redact: for which run.
    pub run_id: Option<RunId>,
    /// AcquireRefreshLease: for whom.
    pub holder: Option<LeaseHolder>,
    /// The trace the call belongs to.
    pub trace_id: Option<TraceId>,
}

impl AuditEvent {
    /// An event of which nothing else is known yet.
    pub fn new(time: Timestamp, caller: &Caller, action: Action, outcome: &'static str) -> Self {
        let Caller { id, actor, trace_id, .. } = caller.clone();
        Self {
            time,
            caller: id,
            actor,
            workspace: None,
            secret: None,
            version: None,
            action,
            outcome,
            alias: None,
            matches: None,
            workflow_id: None,
            run_id: None,
            holder: None,
            trace_id,
        }
    }
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// CreateSecret.
    Create,
    /// GetSecret.
    Get,
    /// UpdateSecret.
    Update,
    /// DeleteSecret.
    Delete,
    /// UndeleteSecret.
    Undelete,
    /// RollbackSecret.
    Rollback,
    /// No call: the end of a deleted secret. In trails only.
    Purge,
    /// ListSecrets.
    List,
    /// ListSecretVersions.
    ListVersions,
    /// ListAuditEvents.
    ListAuditEvents,
    /// ResolveSecrets.
    Resolve,
    /// AcquireRefreshLease.
    AcquireLease,
    /// ReleaseRefreshLease.
    ReleaseLease,
    /// ListSecretUsage.
    ListUsage,
    /// RenderTemplate.
    Render,
    /// CheckReferences.
    Check,
    /// PrepareTemplate.
    Prepare,
    /// Redact.
    Redact,
    /// DescribeWorkspaceKeys.
    DescribeKeys,
    /// RotateDataKey.
    RotateDataKey,
    /// ReencryptWorkspace.
    Reencrypt,
    /// RewrapDataKeys.
    RewrapDataKeys,
    /// ShredWorkspace.
    Shred,
    /// No call: the store has gone back behind what was seen of it.
    StoreRegressed,
}

impl Action {
    /// The word in the audit stream.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Undelete => "undelete",
            Self::Rollback => "rollback",
            Self::Purge => "purge",
            Self::List => "list",
            Self::ListVersions => "list_versions",
            Self::ListAuditEvents => "list_audit_events",
            Self::Resolve => "resolve",
            Self::AcquireLease => "acquire_lease",
            Self::ReleaseLease => "release_lease",
            Self::ListUsage => "list_usage",
            Self::Render => "render",
            Self::Check => "check",
            Self::Prepare => "prepare",
            Self::Redact => "redact",
            Self::DescribeKeys => "describe_keys",
            Self::RotateDataKey => "rotate_data_key",
            Self::Reencrypt => "reencrypt",
            Self::RewrapDataKeys => "rewrap_data_keys",
            Self::Shred => "shred",
            Self::StoreRegressed => "store_regressed",
        }
    }
}
