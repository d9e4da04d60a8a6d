//! The one place where errors become `tonic::Status`.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    domain::SecretName,
    service::{Cause, Error, FieldViolation, Pasted, Unresolved},
};

/// `ErrorInfo.domain` of every error.
const DOMAIN: &str = "workflowsecrets.v1";

/// Bytes of names, suggestions among them, that one error may list. Details
/// travel base64-encoded in a trailer, and gRPC core refuses metadata above
/// 8 KiB by default.
const DETAIL_BYTES: usize = 5_000;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut details = ErrorDetails::new();
        let mut metadata = HashMap::new();
        let (code, message) = describe(&error, &mut details, &mut metadata);
        details.set_error_info(error.reason(), DOMAIN, metadata);
        if let Some(delay) = error.retry_after() {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(code, message, details)
    }
}

/// What tonic answers to a method that does not exist and to a compressed
/// message, with details. Its metadata stay: they name the encodings taken.
pub(super) fn unimplemented(status: Status) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info("UNIMPLEMENTED", DOMAIN, HashMap::new());
    Status::with_error_details_and_metadata(
        Code::Unimplemented,
        "no such method, or a compressed message: use the service's proto file, and send \
         messages uncompressed",
        details,
        status.metadata().clone(),
    )
}

/// Code, message (what is wrong and what to do next) and further details.
fn describe(
    error: &Error,
    details: &mut ErrorDetails,
    metadata: &mut HashMap<String, String>,
) -> (Code, String) {
    let text = |code: Code, message: &str| (code, message.to_owned());
    match error {
        Error::Invalid(violations) => {
            bad_request(details, metadata, violations);
            let first = violations.first();
            let first = first.map_or_else(String::new, |v| format!(": {} {}", v.field, v.rule));
            (Code::InvalidArgument, format!("invalid request{first}"))
        }
        Error::ValueTooLarge(violation)
        | Error::TooManyCredentials(violation)
        | Error::TooManyReferences(violation)
        | Error::TemplateTooLarge(violation) => {
            bad_request(details, metadata, std::slice::from_ref(violation));
            (Code::ResourceExhausted, format!("{} {}", violation.field, violation.rule))
        }
        Error::MessageTooLarge => text(
            Code::ResourceExhausted,
            "the message is larger than any valid call: a value has at most 64 KiB, a template \
             1 MiB, a chunk 255 KiB",
        ),
        Error::RenderedTooLarge => text(
            Code::ResourceExhausted,
            "the result would be too large; nothing was resolved: split the template",
        ),
        Error::TooMuchToMatch => text(
            Code::ResourceExhausted,
            "the values to look for have more than 8 MiB, or than 64 MiB in all encodings: name \
             the secrets that matter",
        ),
        Error::RateLimited { .. } => text(
            Code::ResourceExhausted,
            "too many calls in this time, of the caller or of the workspace; nothing was done: \
             retry later",
        ),
        Error::ValuesPasted(pasted) => {
            values_pasted(details, metadata, pasted);
            (
                Code::FailedPrecondition,
                format!("{} values stand in the template: refer to them instead", pasted.len()),
            )
        }
        Error::ShuttingDown => text(
            Code::Unavailable,
            "this replica is ending: go on elsewhere; Redact from input_bytes of the last answer on",
        ),
        Error::MalformedMessage => text(
            Code::InvalidArgument,
            "the message does not decode: strings must be UTF-8, and both sides must use \
             the same proto file",
        ),
        Error::Overloaded => {
            text(Code::ResourceExhausted, "too many calls at once; nothing was done: retry later")
        }
        Error::Timeout => text(
            Code::DeadlineExceeded,
            "the call took too long: retry; a change without request_id may have been made",
        ),
        Error::Unauthenticated(why) => (
            Code::Unauthenticated,
            format!("{why}: call with a client certificate that has exactly one SPIFFE URI SAN"),
        ),
        Error::NotGranted => text(
            Code::PermissionDenied,
            "the policy grants the caller no such call in this workspace",
        ),
        Error::SystemManaged(owner) => {
            let whose = owner.as_ref().map_or_else(
                || "another integration".to_owned(),
                |owner| {
                    metadata.insert("integration".into(), owner.integration.to_string());
                    metadata.insert("connection_id".into(), owner.connection_id.to_string());
                    format!("integration {}", owner.integration)
                },
            );
            let message = format!("the secret is managed by {whose}: reconnect or revoke it there");
            (Code::PermissionDenied, message)
        }
        Error::UserManaged => text(
            Code::PermissionDenied,
            "the secret is managed by people: an integration may not change it",
        ),
        Error::NotFound { name, suggestion } => {
            let hint = suggestion.as_ref().map_or_else(String::new, |other| {
                metadata.insert("suggestion".into(), other.to_string());
                format!("; names are case-sensitive: did you mean {other}?")
            });
            details.set_resource_info("secret", name.as_str(), "", "no such secret");
            (Code::NotFound, format!("secret {name} does not exist in this workspace{hint}"))
        }
        Error::VersionNotFound { name, version } => {
            details.set_resource_info(
                "secret version",
                format!("{name}/{version}"),
                "",
                "not kept",
            );
            (Code::NotFound, format!("no earlier version {version} of secret {name} is kept"))
        }
        Error::Exists(name) => {
            details.set_resource_info("secret", name.as_str(), "", "the name is taken");
            (
                Code::AlreadyExists,
                format!("secret {name} exists: update it, or choose another name"),
            )
        }
        Error::EtagMismatch => text(
            Code::Aborted,
            "the secret was changed since the etag was read: get it again, then decide",
        ),
        Error::Cancelled => text(Code::Cancelled, "the caller has gone"),
        Error::ConcurrentUpdate => {
            text(Code::Aborted, "lost a race against other changes; nothing was done: retry")
        }
        Error::LeaseHeld { holder, until, .. } => {
            metadata.insert("holder".into(), holder.to_string());
            metadata.insert("expire_time".into(), until.to_string());
            let message = format!(
                "{holder} holds the refresh lease until {until}: wait, then look whether the \
                 secret was refreshed"
            );
            (Code::Aborted, message)
        }
        Error::LeaseLost => text(
            Code::Aborted,
            "the lease has ended or another is newer; nothing was stored: get the secret again, \
             then decide",
        ),
        Error::RequestIdReused => text(
            Code::InvalidArgument,
            "the request_id was used for another request within 24 hours: use a new one",
        ),
        Error::Unresolved(names) => {
            unresolved(details, metadata, names);
            (Code::FailedPrecondition, format!("{}; nothing was resolved", summary(names)))
        }
        Error::QuotaExceeded { limit, deleted } => {
            let (what, help) = match deleted {
                false => ("secrets", "delete some first"),
                true => ("deleted secrets that may come back", "delete permanently, or wait"),
            };
            details.add_quota_failure_violation(
                "workspace",
                format!("at most {limit} {what} per workspace"),
            );
            let message = format!("the workspace holds {limit} {what}, its limit: {help}");
            (Code::ResourceExhausted, message)
        }
        Error::WorkspaceShredded => {
            text(Code::FailedPrecondition, "the workspace was destroyed for good: use another id")
        }
        Error::NoDataKey => {
            text(Code::NotFound, "the workspace has no data key yet: the first secret makes one")
        }
        Error::TooManyDataKeys => text(
            Code::ResourceExhausted,
            "the workspace has 100 data keys, its limit: re-encrypt it, which removes retired ones",
        ),
        Error::StoreFull => text(
            Code::ResourceExhausted,
            "the store has no room; nothing was stored: an operator must add memory or disk",
        ),
        Error::KmsUnavailable { .. } => {
            text(Code::Unavailable, "the key-management service cannot be reached: retry")
        }
        Error::KmsBudgetExceeded { .. } => text(
            Code::ResourceExhausted,
            "the workspace has made too many calls to the key-management service: retry later",
        ),
        Error::KmsKeyUnusable(why) => {
            (Code::FailedPrecondition, format!("{why}: an operator must restore the KMS key"))
        }
        Error::StoreUnavailable(_) => text(
            Code::Unavailable,
            "the store cannot be reached: retry; a change without request_id may have been made",
        ),
        Error::AuditUnavailable => text(
            Code::Unavailable,
            "the audit stream cannot be written: retry; a change without request_id may have \
             been made",
        ),
        Error::RecordCorrupt(_) => text(
            Code::DataLoss,
            "a stored record fails authentication: restore it from a backup, or update \
             its value and expire_time together",
        ),
        Error::DataKeyMissing => text(
            Code::DataLoss,
            "the workspace's data key is gone while records remain: restore it from a backup",
        ),
        Error::Internal(_) => text(Code::Internal, "a fault of this service: see its log"),
    }
}

fn bad_request(
    details: &mut ErrorDetails,
    metadata: &mut HashMap<String, String>,
    violations: &[FieldViolation],
) {
    let mut room = DETAIL_BYTES;
    for (listed, violation) in violations.iter().enumerate() {
        let size = violation.field.len() + violation.rule.len() + 8;
        if size > room {
            metadata.insert("unlisted".into(), (violations.len() - listed).to_string());
            return;
        }
        room -= size;
        details.add_bad_request_violation(&violation.field, violation.rule.clone());
    }
}

/// So many names stand in messages, which people read.
const NAMED: usize = 2;

/// The place in a message. A long one is told in the details only.
fn short_place(unresolved: &Unresolved) -> Option<&str> {
    unresolved.place.as_deref().filter(|place| place.len() <= 60)
}

/// The first names.
fn summary(all: &[Unresolved]) -> String {
    let told = all.iter().take(NAMED).map(|one| {
        let Unresolved { name, cause, .. } = one;
        let name = name.as_ref().map_or("a reference", SecretName::as_str);
        let place = short_place(one).map_or_else(String::new, |place| format!(" (at {place})"));
        match cause {
            Cause::Missing(_) => format!("{name} does not exist{place}"),
            Cause::Expired => format!("{name} has expired{place}"),
            Cause::Malformed => format!("{name} is malformed{place}"),
            Cause::VersionMissing(version) => format!("{name} has no version {version}{place}"),
            Cause::Stale { version, least } => {
                format!("{name} is at version {version}, older than {least} seen before{place}")
            }
            Cause::Replaced => format!("{name} is another secret than the one seen before{place}"),
        }
    });
    let more = match all.len().saturating_sub(NAMED) {
        0 => None,
        more => Some(format!("and {more} more cannot be resolved")),
    };
    told.chain(more).collect::<Vec<_>>().join(", ")
}

/// One violation per name and place, with its suggestion, as many as fit.
fn unresolved(
    details: &mut ErrorDetails,
    metadata: &mut HashMap<String, String>,
    all: &[Unresolved],
) {
    // The message takes room too: a place travels in it percent-encoded, and
    // once more in the details.
    let in_message: usize = all.iter().take(NAMED).filter_map(short_place).map(str::len).sum();
    let mut room = DETAIL_BYTES - 4 * in_message;
    for (listed, Unresolved { name, cause, place }) in all.iter().enumerate() {
        let name = name.as_ref().map_or("", SecretName::as_str);
        let place = place.as_deref().unwrap_or_default();
        let (kind, suggestion) = match cause {
            Cause::Missing(other) => ("MISSING", other.as_ref()),
            Cause::Expired => ("EXPIRED", None),
            Cause::Malformed => ("MALFORMED", None),
            Cause::VersionMissing(_) => ("VERSION_MISSING", None),
            Cause::Stale { .. } => ("STALE", None),
            Cause::Replaced => ("REPLACED", None),
        };
        let suggestion = suggestion.map(|other| (format!("suggestion.{name}"), other.to_string()));
        let suggestion = suggestion.filter(|(key, _)| !metadata.contains_key(key));
        let size = kind.len()
            + name.len()
            + 6
            + if place.is_empty() { 0 } else { place.len() + 2 }
            + suggestion.as_ref().map_or(0, |(key, other)| key.len() + other.len() + 9);
        if size > room {
            metadata.insert("unlisted".into(), (all.len() - listed).to_string());
            return;
        }
        room -= size;
        details.add_precondition_failure_violation(kind, name, place);
        metadata.extend(suggestion);
    }
}

/// One violation per value found, as many as fit.
fn values_pasted(
    details: &mut ErrorDetails,
    metadata: &mut HashMap<String, String>,
    pasted: &[Pasted],
) {
    let mut room = DETAIL_BYTES;
    for (listed, Pasted { place, name, written, .. }) in pasted.iter().enumerate() {
        let (kind, name) = (written.as_str(), name.as_str());
        let size = kind.len() + name.len() + place.len() + 8;
        if size > room {
            metadata.insert("unlisted".into(), (pasted.len() - listed).to_string());
            return;
        }
        room -= size;
        details.add_precondition_failure_violation(kind, name, place);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{envelope::KeyError, kms::KmsError};

    #[test]
    fn what_the_kms_was_not_asked_is_told_with_a_time_to_wait() {
        let wait = Duration::from_millis(1_250);
        for (error, code, reason) in [
            (KmsError::Down { wait }, Code::Unavailable, "KMS_UNAVAILABLE"),
            (KmsError::OverBudget { wait }, Code::ResourceExhausted, "KMS_BUDGET_EXCEEDED"),
        ] {
            let status = Status::from(Error::from(KeyError::Kms(error)));
            let details = status.get_error_details();
            assert_eq!(status.code(), code);
            assert_eq!(details.error_info().unwrap().reason, reason);
            assert_eq!(details.retry_info().unwrap().retry_delay, Some(wait));
        }
    }

    #[test]
    fn suggestions_count_as_what_an_error_may_hold() {
        let name = |first: &str, n| SecretName::parse(&format!("{first}{n:0>127}")).unwrap();
        let names = |suggestions| -> Vec<_> {
            (0..100)
                .map(|n| (name("A", n), (n < suggestions).then(|| name("a", n))))
                .map(|(name, other)| Unresolved {
                    name: Some(name),
                    cause: Cause::Missing(other),
                    place: None,
                })
                .collect()
        };
        for suggestions in [0, 10, 100] {
            let status = Status::from(Error::Unresolved(names(suggestions)));
            let details = status.get_error_details();
            let listed = details.precondition_failure().unwrap().violations.len();
            let told = &details.error_info().unwrap().metadata;
            assert_eq!(told["unlisted"], (100 - listed).to_string());
            assert_eq!(told.len() - 1, suggestions.min(listed));
            let headers = status.into_http::<()>().into_parts().0.headers;
            // RFC 9113, section 6.5.2.
            let size: usize = headers.iter().map(|(k, v)| k.as_str().len() + v.len() + 32).sum();
            assert!(listed > 10 && size < 8 * 1024, "{suggestions}: {listed} in {size}");
        }
    }
}
