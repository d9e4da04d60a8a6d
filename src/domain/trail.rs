//! The trail of a workspace: what was changed, by whom.

use super::{RequestId, SecretName, SecretUid, Timestamp};

/// One change. It has no value, nor anything made from one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrailEntry {
    /// When.
    pub time: Timestamp,
    /// What was done, in the words of the audit stream.
    pub action: String,
    /// The caller's SPIFFE id, or this service's name for what it does by
    /// itself.
    pub caller: String,
    /// The person behind the caller, unproven; or empty.
    pub actor: String,
    /// Which secret; `None`: the workspace as a whole.
    pub name: Option<SecretName>,
    /// The secret's identity.
    pub uid: Option<SecretUid>,
    /// The secret's version after the change; 0: none.
    pub version: u64,
    /// The version whose value was made the newest; 0: none.
    pub restored_version: u64,
    /// Idempotency key of the call.
    pub request_id: Option<RequestId>,
    /// W3C trace id, as the caller told it; or empty.
    pub trace_id: String,
}
