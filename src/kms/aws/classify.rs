//! What a failed call means: one total match per operation.
//!
//! `KeyUnusable` makes the service give up cached keys, and `WrongCiphertext`
//! reports loss of data. Both are said only on an answer that AWS documents to
//! mean that; anything unknown is `Transient`, and the age limits of cached
//! keys bound for how long it may be.

use aws_sdk_kms::{
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        RequestId as _, decrypt::DecryptError,
        generate_data_key_without_plaintext::GenerateDataKeyWithoutPlaintextError,
        re_encrypt::ReEncryptError,
    },
};

use crate::kms::KmsError;

const INTERNAL: KmsError = KmsError::Transient("KMS failed internally");
const DISABLED: KmsError = KmsError::KeyUnusable("the key is disabled");
/// Pending deletion or import, or its custom key store was disconnected, which
/// is done on purpose. States that pass by themselves (a multi-Region key
/// being created or updated) also end here: no state is told apart but by a
/// message for people, and a refusal counts only once it is confirmed later.
const STATE: KmsError = KmsError::KeyUnusable(
    "the key's state allows no use (pending deletion or import, or unavailable)",
);
const NOT_FOUND: KmsError = KmsError::KeyUnusable("no such key in this account and region");
const USAGE: KmsError = KmsError::KeyUnusable("the key is not a symmetric encryption key");

const WRONG_KEY: KmsError =
    KmsError::WrongCiphertext("another key wrapped it (is that key among the previous keys?)");
const WRONG_BLOB: KmsError =
    KmsError::WrongCiphertext("the blob or its encryption context is wrong");

pub(super) fn generate(error: &SdkError<GenerateDataKeyWithoutPlaintextError>) -> KmsError {
    use GenerateDataKeyWithoutPlaintextError as E;
    let kind = match error.as_service_error() {
        None => unanswered(error),
        Some(
            E::DependencyTimeoutException(_)
            | E::KeyUnavailableException(_)
            | E::KmsInternalException(_),
        ) => INTERNAL,
        Some(E::DisabledException(_)) => DISABLED,
        Some(E::KmsInvalidStateException(_)) => STATE,
        Some(E::NotFoundException(_)) => NOT_FOUND,
        Some(E::InvalidKeyUsageException(_)) => USAGE,
        Some(other) => by_code(other.code()),
    };
    log("GenerateDataKeyWithoutPlaintext", kind, error.request_id());
    kind
}

pub(super) fn decrypt(error: &SdkError<DecryptError>) -> KmsError {
    use DecryptError as E;
    let kind = match error.as_service_error() {
        None => unanswered(error),
        Some(
            E::DependencyTimeoutException(_)
            | E::KeyUnavailableException(_)
            | E::KmsInternalException(_),
        ) => INTERNAL,
        Some(E::DisabledException(_)) => DISABLED,
        Some(E::KmsInvalidStateException(_)) => STATE,
        Some(E::NotFoundException(_)) => NOT_FOUND,
        Some(E::InvalidKeyUsageException(_)) => USAGE,
        Some(E::IncorrectKeyException(_)) => WRONG_KEY,
        Some(E::InvalidCiphertextException(_)) => WRONG_BLOB,
        Some(other) => by_code(other.code()),
    };
    log("Decrypt", kind, error.request_id());
    kind
}

/// Either of two keys may be meant, and the answer does not say which.
pub(super) fn rewrap(error: &SdkError<ReEncryptError>) -> KmsError {
    use ReEncryptError as E;
    let kind = match error.as_service_error() {
        None => unanswered(error),
        Some(
            E::DependencyTimeoutException(_)
            | E::KeyUnavailableException(_)
            | E::KmsInternalException(_),
        ) => INTERNAL,
        Some(E::DisabledException(_)) => DISABLED,
        Some(E::KmsInvalidStateException(_)) => STATE,
        Some(E::NotFoundException(_)) => NOT_FOUND,
        Some(E::InvalidKeyUsageException(_)) => USAGE,
        Some(E::IncorrectKeyException(_)) => WRONG_KEY,
        Some(E::InvalidCiphertextException(_)) => WRONG_BLOB,
        Some(other) => by_code(other.code()),
    };
    log("ReEncrypt", kind, error.request_id());
    kind
}

/// No answer from KMS, so nothing is known of the key.
fn unanswered<E>(error: &SdkError<E>) -> KmsError {
    KmsError::Transient(match error {
        SdkError::TimeoutError(_) => "no answer in time",
        SdkError::DispatchFailure(_) => "no connection, or no credentials",
        SdkError::ConstructionFailure(_) => "the request could not be built",
        SdkError::ResponseError(_) => "the answer could not be read",
        _ => "the call failed",
    })
}

/// Errors common to all operations, which the SDK does not model.
/// Source: AWS KMS API Reference, "Common errors".
fn by_code(code: Option<&str>) -> KmsError {
    match code.unwrap_or_default() {
        "AccessDeniedException" | "NotAuthorized" | "OptInRequired" => {
            KmsError::KeyUnusable("access denied")
        }
        // Deleting the caller's credentials is a way to revoke access, and
        // unlike expiry it does not heal by fetching them again.
        "UnrecognizedClientException" | "InvalidClientTokenId" => {
            KmsError::KeyUnusable("the caller's credentials are not recognized")
        }
        "InvalidArnException" | "ValidationException" | "ValidationError" => {
            KmsError::KeyUnusable("KMS refused the key's name")
        }
        // Fetched again before they expire; a wrong signature is mostly a
        // wrong clock. Neither tells anything of the key.
        "ExpiredTokenException" | "ExpiredToken" => {
            KmsError::Transient("the caller's credentials have expired")
        }
        "InvalidSignatureException" | "IncompleteSignature" | "RequestExpired" => {
            KmsError::Transient("signature refused (check the clock and the credentials)")
        }
        "ThrottlingException"
        | "Throttling"
        | "LimitExceededException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded" => KmsError::Transient("throttled"),
        _ => KmsError::Transient("unexpected answer"),
    }
}

/// The request id is what AWS support and CloudTrail ask for.
fn log(operation: &'static str, error: KmsError, request_id: Option<&str>) {
    tracing::warn!(operation, %error, request_id, "KMS call failed");
}
