//! Why a call was refused or failed: one type, one stable reason each.

use std::{borrow::Cow, time::Duration};

use super::Pasted;
use crate::{
    domain::{LeaseHolder, Owner, Refusal, SecretName, Timestamp},
    envelope::{Corrupt, KeyError},
    kms::KmsError,
    store::StoreError,
};

/// A field that breaks its rule. Never holds what was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// Path of the field, as in `credentials[3].alias`.
    pub field: String,
    /// The rule.
    pub rule: Cow<'static, str>,
}

impl FieldViolation {
    /// A violation of `rule` by `field`.
    pub fn new(field: impl Into<String>, rule: impl Into<Cow<'static, str>>) -> Self {
        Self { field: field.into(), rule: rule.into() }
    }
}

/// A secret that is wanted and cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// Its name; `None` for [`Cause::Malformed`].
    pub name: Option<SecretName>,
    /// Why.
    pub cause: Cause,
    /// Where it is wanted, if that is more than its name.
    pub place: Option<String>,
}

/// Why a name does not resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// There is no such secret; perhaps one whose name differs only in case,
    /// told only to callers that may list.
    Missing(Option<SecretName>),
    /// Its expiry has passed.
    Expired,
    /// What begins like a reference is none.
    Malformed,
    /// The version asked for is not kept.
    VersionMissing(u64),
    /// The store has an older version than the caller has seen.
    Stale {
        /// The one it has.
        version: u64,
        /// The least that the caller takes.
        least: u64,
    },
    /// The name is another secret's than the caller has seen.
    Replaced,
}

/// Why a call was refused or failed. Holds no value, key or ciphertext.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fields break their rules; nothing was looked up.
    #[error("invalid fields")]
    Invalid(Vec<FieldViolation>),
    /// A value is longer than allowed.
    #[error("{} is too large", .0.field)]
    ValueTooLarge(FieldViolation),
    /// More credentials than one call may have.
    #[error("too many credentials")]
    TooManyCredentials(FieldViolation),
    /// Documents and credentials lists refer to more secrets than one call may.
    #[error("too many references")]
    TooManyReferences(FieldViolation),
    /// A document is longer than allowed.
    #[error("template too large")]
    TemplateTooLarge(FieldViolation),
    /// With values or references put in, a document is longer than allowed.
    #[error("rendered template too large")]
    RenderedTooLarge,
    /// The values to look for have more bytes than one call may look for.
    #[error("too much to match")]
    TooMuchToMatch,
    /// The caller or the workspace has had its calls of this time.
    #[error("rate limited")]
    RateLimited {
        /// Then it may be asked again.
        wait: Duration,
    },
    /// Values of the workspace stand in a template.
    #[error("{} values pasted", .0.len())]
    ValuesPasted(Vec<Pasted>),
    /// The message as a whole is larger than any call needs.
    #[error("message too large")]
    MessageTooLarge,
    /// The bytes are no message of this call.
    #[error("malformed message")]
    MalformedMessage,
    /// More calls at once than this replica takes, in all, of the caller or of
    /// the workspace.
    #[error("overloaded")]
    Overloaded,
    /// The replica is about to end.
    #[error("shutting down")]
    ShuttingDown,
    /// The call, or the reading of its answer, took longer than any may, or than
    /// the caller waits.
    #[error("timeout")]
    Timeout,
    /// The caller has no identity; the text says what is wrong.
    #[error("unauthenticated: {0}")]
    Unauthenticated(&'static str),
    /// The policy grants no such call in that workspace.
    #[error("not granted")]
    NotGranted,
    /// An integration owns the secret; which one, for callers that may list.
    #[error("system-managed")]
    SystemManaged(Option<Owner>),
    /// People own the secret.
    #[error("managed by people")]
    UserManaged,
    /// No such secret; perhaps one whose name differs only in case.
    #[error("secret not found")]
    NotFound {
        /// The name asked for.
        name: SecretName,
        /// Told only to callers that may list.
        suggestion: Option<SecretName>,
    },
    /// No such earlier version is kept.
    #[error("version {version} not found")]
    VersionNotFound {
        /// The secret.
        name: SecretName,
        /// The version asked for.
        version: u64,
    },
    /// The name is taken.
    #[error("secret exists")]
    Exists(SecretName),
    /// The secret was changed since the etag was read.
    #[error("etag mismatch")]
    EtagMismatch,
    /// Whoever called has gone.
    #[error("cancelled")]
    Cancelled,
    /// Lost a race; nothing was done.
    #[error("concurrent update")]
    ConcurrentUpdate,
    /// Another holder has the lease.
    #[error("lease held")]
    LeaseHeld {
        /// Who.
        holder: LeaseHolder,
        /// Until when.
        until: Timestamp,
        /// How long that is from now.
        left: Duration,
    },
    /// The fencing token is not that of the secret's newest lease, or the
    /// lease has ended.
    #[error("lease lost")]
    LeaseLost,
    /// The request id stands for another request.
    #[error("request id reused")]
    RequestIdReused,
    /// Names that do not resolve, each once per place.
    #[error("{} secrets unresolved", .0.len())]
    Unresolved(Vec<Unresolved>),
    /// The workspace holds as many secrets as it may.
    #[error("quota exceeded")]
    QuotaExceeded {
        /// Secrets per workspace.
        limit: u64,
        /// Of deleted ones that may come back.
        deleted: bool,
    },
    /// The workspace was destroyed, and can never hold anything again.
    #[error("workspace shredded")]
    WorkspaceShredded,
    /// The workspace has no data key to replace: nothing was ever stored there.
    #[error("no data key")]
    NoDataKey,
    /// The workspace has as many data keys as it may.
    #[error("too many data keys")]
    TooManyDataKeys,
    /// The store has no room.
    #[error("store full")]
    StoreFull,
    /// The KMS cannot be reached now.
    #[error("KMS unavailable: {why}")]
    KmsUnavailable {
        /// What went wrong.
        why: &'static str,
        /// Then it is asked again.
        wait: Duration,
    },
    /// The workspace has made as many KMS calls as it may.
    #[error("too many KMS calls of the workspace")]
    KmsBudgetExceeded {
        /// Then it may make one.
        wait: Duration,
    },
    /// The key-encryption key cannot be used.
    #[error("key-encryption key unusable: {0}")]
    KmsKeyUnusable(&'static str),
    /// The store cannot be reached now.
    #[error("store unavailable: {0}")]
    StoreUnavailable(&'static str),
    /// The audit stream cannot be written now.
    #[error("audit unavailable")]
    AuditUnavailable,
    /// A stored record fails authentication or is not a record.
    #[error("record corrupt: {0}")]
    RecordCorrupt(&'static str),
    /// The data key is gone while records remain.
    #[error("data key missing")]
    DataKeyMissing,
    /// A fault of this service.
    #[error("internal: {0}")]
    Internal(&'static str),
}

impl Error {
    /// A refused field.
    pub fn field(field: &str, rule: &'static str) -> Self {
        Self::Invalid(vec![FieldViolation::new(field, rule)])
    }

    /// A refused field, by its refusal.
    pub fn refused(field: &str, refusal: Refusal) -> Self {
        Self::field(field, refusal.rule())
    }

    /// The stable, machine-readable reason, for `ErrorInfo` and audit lines.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Invalid(_) => "INVALID_FIELD",
            Error::ValueTooLarge(_) => "VALUE_TOO_LARGE",
            Error::TooManyCredentials(_) => "TOO_MANY_CREDENTIALS",
            Error::TooManyReferences(_) => "TOO_MANY_REFERENCES",
            Error::TemplateTooLarge(_) => "TEMPLATE_TOO_LARGE",
            Error::RenderedTooLarge => "RENDERED_TOO_LARGE",
            Error::TooMuchToMatch => "TOO_MUCH_TO_MATCH",
            Error::RateLimited { .. } => "RATE_LIMITED",
            Error::ValuesPasted(_) => "VALUES_PASTED",
            Error::MessageTooLarge => "MESSAGE_TOO_LARGE",
            Error::MalformedMessage => "MALFORMED_MESSAGE",
            Error::Overloaded => "OVERLOADED",
            Error::Timeout => "TIMEOUT",
            Error::Unauthenticated(_) => "UNAUTHENTICATED",
            Error::NotGranted => "NOT_GRANTED",
            Error::SystemManaged(_) => "SYSTEM_MANAGED",
            Error::UserManaged => "USER_MANAGED",
            Error::NotFound { .. } => "SECRET_NOT_FOUND",
            Error::VersionNotFound { .. } => "VERSION_NOT_FOUND",
            Error::Exists(_) => "SECRET_EXISTS",
            Error::EtagMismatch => "ETAG_MISMATCH",
            Error::Cancelled => "CANCELLED",
            Error::ShuttingDown => "SHUTTING_DOWN",
            Error::ConcurrentUpdate => "CONCURRENT_UPDATE",
            Error::LeaseHeld { .. } => "LEASE_HELD",
            Error::LeaseLost => "LEASE_LOST",
            Error::RequestIdReused => "REQUEST_ID_REUSED",
            Error::Unresolved(_) => "SECRETS_UNRESOLVED",
            Error::QuotaExceeded { .. } => "QUOTA_EXCEEDED",
            Error::WorkspaceShredded => "WORKSPACE_SHREDDED",
            Error::NoDataKey => "NO_DATA_KEY",
            Error::TooManyDataKeys => "TOO_MANY_DATA_KEYS",
            Error::StoreFull => "STORE_FULL",
            Error::KmsUnavailable { .. } => "KMS_UNAVAILABLE",
            Error::KmsBudgetExceeded { .. } => "KMS_BUDGET_EXCEEDED",
            Error::KmsKeyUnusable(_) => "KMS_KEY_UNUSABLE",
            Error::StoreUnavailable(_) => "STORE_UNAVAILABLE",
            Error::AuditUnavailable => "AUDIT_UNAVAILABLE",
            Error::RecordCorrupt(_) => "RECORD_CORRUPT",
            Error::DataKeyMissing => "DATA_KEY_MISSING",
            Error::Internal(_) => "INTERNAL",
        }
    }

    /// Whether a call was refused for nothing but the load.
    pub(super) fn is_of_load(&self) -> bool {
        matches!(self, Self::Overloaded | Self::RateLimited { .. })
    }

    /// How long to wait before the same call may succeed, where waiting helps.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::KmsUnavailable { wait, .. }
            | Error::KmsBudgetExceeded { wait }
            | Error::RateLimited { wait } => Some(*wait),
            // Another replica takes it at once.
            Error::ShuttingDown => Some(Duration::ZERO),
            // The store reconnects within 1 s.
            Error::StoreUnavailable(_) | Error::AuditUnavailable => Some(Duration::from_secs(1)),
            Error::LeaseHeld { left, .. } => Some(*left),
            Error::ConcurrentUpdate => Some(Duration::from_millis(50)),
            // Soon enough for who was refused by chance, and no flood of
            // repetitions.
            Error::Overloaded => Some(Duration::from_millis(500)),
            _ => None,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(why) => Error::StoreUnavailable(why),
            StoreError::NotReplicated { .. } => {
                Error::StoreUnavailable("the write did not reach enough replicas")
            }
            StoreError::Full => Error::StoreFull,
            StoreError::Malformed(what) => Error::RecordCorrupt(what),
        }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        match error {
            // A failure is remembered for 2 s.
            KeyError::Kms(KmsError::Transient(why)) => {
                Error::KmsUnavailable { why, wait: Duration::from_secs(2) }
            }
            KeyError::Kms(KmsError::Down { wait }) => {
                Error::KmsUnavailable { why: "it failed too often in a row", wait }
            }
            KeyError::Kms(KmsError::OverBudget { wait }) => Error::KmsBudgetExceeded { wait },
            KeyError::Kms(KmsError::KeyUnusable(why)) => Error::KmsKeyUnusable(why),
            KeyError::Kms(KmsError::WrongCiphertext(why)) => Error::RecordCorrupt(why),
            KeyError::Shredded => Error::WorkspaceShredded,
            KeyError::Missing => Error::DataKeyMissing,
            KeyError::Corrupt(_) => Error::RecordCorrupt("data key"),
            KeyError::Store(error) => error.into(),
        }
    }
}

impl From<Corrupt> for Error {
    fn from(_: Corrupt) -> Self {
        Error::RecordCorrupt("sealed value")
    }
}
