//! What the AWS adapter makes of failures, and how it bounds its calls.

use std::{
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{join, join_all};
use workflow_secrets::{
    domain::{KeyMaterial, SystemClock, WorkspaceId, WrappedDataKey},
    kms::{
        EncryptionContext, GuardConfig, Guarded, Kms, KmsError,
        aws::{AwsKms, AwsKmsConfig, KmsKeyId},
    },
};

use crate::{
    kms::{context, now},
    support::kms_endpoint::{Fault, KeyState, KmsEndpoint, sdk_config},
};

fn config(key: &str) -> AwsKmsConfig {
    AwsKmsConfig::new(KmsKeyId::parse(key).unwrap())
}

async fn endpoint_with_key() -> (KmsEndpoint, String, WrappedDataKey) {
    let endpoint = KmsEndpoint::start().await;
    let arn = endpoint.create_key();
    let wrapped = endpoint.kms(&arn).generate_data_key(&context(), now()).await.unwrap();
    (endpoint, arn, wrapped)
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Transient,
    KeyUnusable,
    WrongCiphertext,
}

fn kind<T>(result: Result<T, KmsError>) -> Option<Kind> {
    Some(match result.err()? {
        KmsError::Transient(_) | KmsError::Down { .. } | KmsError::OverBudget { .. } => {
            Kind::Transient
        }
        KmsError::KeyUnusable(_) => Kind::KeyUnusable,
        KmsError::WrongCiphertext(_) => Kind::WrongCiphertext,
    })
}

/// The guard that stands before the adapter in production.
fn guarded(kms: AwsKms, config: GuardConfig) -> Guarded {
    Guarded::new(Arc::new(kms), Arc::new(SystemClock::default()), config)
}

fn is_transient(result: &Result<KeyMaterial, KmsError>) -> bool {
    matches!(result, Err(KmsError::Transient(_)))
}

#[tokio::test]
async fn every_answer_has_its_meaning() {
    let (endpoint, arn, wrapped) = endpoint_with_key().await;
    let kms = endpoint.kms_with(AwsKmsConfig { max_attempts: NonZeroU32::MIN, ..config(&arn) });
    for (status, name, expected) in [
        (400, "ThrottlingException", Kind::Transient),
        (400, "LimitExceededException", Kind::Transient),
        (429, "TooManyRequestsException", Kind::Transient),
        (500, "KMSInternalException", Kind::Transient),
        (500, "KeyUnavailableException", Kind::Transient),
        (503, "DependencyTimeoutException", Kind::Transient),
        (500, "InternalFailure", Kind::Transient),
        (503, "ServiceUnavailableException", Kind::Transient),
        (400, "ExpiredTokenException", Kind::Transient),
        (400, "InvalidSignatureException", Kind::Transient),
        (400, "RequestExpired", Kind::Transient),
        (418, "NeverHeardOfException", Kind::Transient),
        (400, "DisabledException", Kind::KeyUnusable),
        (400, "KMSInvalidStateException", Kind::KeyUnusable),
        (400, "NotFoundException", Kind::KeyUnusable),
        (400, "InvalidKeyUsageException", Kind::KeyUnusable),
        (400, "AccessDeniedException", Kind::KeyUnusable),
        (400, "UnrecognizedClientException", Kind::KeyUnusable),
        (403, "OptInRequired", Kind::KeyUnusable),
        (400, "InvalidArnException", Kind::KeyUnusable),
        (400, "ValidationException", Kind::KeyUnusable),
    ] {
        endpoint.fault(Fault::Error(status, name));
        let expected = Some(expected);
        assert_eq!(kind(kms.decrypt(&context(), &wrapped).await), expected, "Decrypt: {name}");
        let generated = kms.generate_data_key(&context(), now()).await;
        assert_eq!(kind(generated), expected, "GenerateDataKey: {name}");
    }
    assert_eq!((endpoint.decrypts(), endpoint.generates()), (21, 22), "one attempt each");
    for name in ["IncorrectKeyException", "InvalidCiphertextException"] {
        endpoint.fault(Fault::Error(400, name));
        let decrypted = kms.decrypt(&context(), &wrapped).await;
        assert_eq!(kind(decrypted), Some(Kind::WrongCiphertext), "{name}");
    }
    for fault in [
        Fault::Drop,
        Fault::Body("no JSON"),
        Fault::Body("{}"),
        Fault::Body(r#"{"KeyId": "k", "CiphertextBlob": ""}"#),
    ] {
        endpoint.fault(fault);
        assert_eq!(kind(kms.decrypt(&context(), &wrapped).await), Some(Kind::Transient));
        let generated = kms.generate_data_key(&context(), now()).await;
        assert_eq!(kind(generated), Some(Kind::Transient));
    }
}

#[tokio::test]
async fn key_states_show_and_pass() {
    let (endpoint, arn, wrapped) = endpoint_with_key().await;
    let kms = endpoint.kms(&arn);
    for state in [KeyState::Disabled, KeyState::PendingDeletion, KeyState::AccessDenied] {
        endpoint.set_state(&arn, state);
        let before = (endpoint.decrypts(), endpoint.generates());
        let decrypted = kms.decrypt(&context(), &wrapped).await;
        assert_eq!(kind(decrypted), Some(Kind::KeyUnusable));
        let generated = kms.generate_data_key(&context(), now()).await;
        assert_eq!(kind(generated), Some(Kind::KeyUnusable));
        let after = (endpoint.decrypts(), endpoint.generates());
        assert_eq!(after, (before.0 + 1, before.1 + 1), "not retried");
    }
    endpoint.set_state(&arn, KeyState::Enabled);
    assert!(kms.decrypt(&context(), &wrapped).await.is_ok());
    let unknown = endpoint.kms("alias/unknown");
    let decrypted = unknown.decrypt(&context(), &wrapped).await;
    assert_eq!(kind(decrypted), Some(Kind::KeyUnusable));
}

#[tokio::test]
async fn transient_failures_are_retried_three_attempts_in_all() {
    let (endpoint, arn, wrapped) = endpoint_with_key().await;
    let kms = endpoint.kms(&arn);
    for fault in [Fault::Throttle, Fault::Error(500, "KMSInternalException"), Fault::Drop] {
        let before = endpoint.decrypts();
        endpoint.fault_times(2, fault);
        assert!(kms.decrypt(&context(), &wrapped).await.is_ok());
        assert_eq!(endpoint.decrypts() - before, 3);

        let before = endpoint.decrypts();
        endpoint.fault(fault);
        assert!(is_transient(&kms.decrypt(&context(), &wrapped).await));
        assert_eq!(endpoint.decrypts() - before, 3);
        endpoint.heal();
    }
}

#[tokio::test]
async fn a_hanging_kms_is_given_up_in_time() {
    let (endpoint, arn, wrapped) = endpoint_with_key().await;
    let kms = endpoint.kms(&arn);
    endpoint.fault(Fault::Hang);
    let limit = Duration::from_millis(3_500);
    let result = tokio::time::timeout(limit, kms.decrypt(&context(), &wrapped)).await;
    assert!(is_transient(&result.expect("bounded")));
    assert!(endpoint.decrypts() > 1, "an attempt that hangs is given up for another");

    endpoint.heal();
    assert!(kms.decrypt(&context(), &wrapped).await.is_ok());
}

#[tokio::test]
async fn the_wait_for_a_turn_counts() {
    let (endpoint, arn, wrapped) = endpoint_with_key().await;
    let kms = endpoint.kms_with(AwsKmsConfig {
        attempt_timeout: Duration::from_secs(60),
        operation_timeout: Duration::from_secs(60),
        ..config(&arn)
    });
    let limit = Duration::from_secs(1);
    let one = GuardConfig { limit, max_in_flight: NonZeroU16::MIN, ..GuardConfig::default() };
    let kms = guarded(kms, one);
    endpoint.fault(Fault::Delay(Duration::from_millis(600)));
    let context = context();
    let (first, second) =
        join(kms.decrypt(&context, &wrapped), kms.decrypt(&context, &wrapped)).await;
    assert!(first.is_ok());
    assert!(is_transient(&second), "too little time was left when its turn came");

    endpoint.heal();
    assert!(kms.decrypt(&context, &wrapped).await.is_ok(), "turns are given back");
}

#[tokio::test]
async fn no_more_calls_in_flight_than_allowed() {
    let (endpoint, arn, wrapped) = endpoint_with_key().await;
    let kms = endpoint.kms_with(AwsKmsConfig {
        attempt_timeout: Duration::from_secs(60),
        operation_timeout: Duration::from_secs(60),
        ..config(&arn)
    });
    let limit = Duration::from_secs(60);
    let kms = guarded(kms, GuardConfig { limit, ..GuardConfig::default() });
    endpoint.fault(Fault::Delay(Duration::from_millis(200)));
    let contexts: Vec<_> = (0..40)
        .map(|n| WorkspaceId::parse(&format!("other_{n}")).unwrap())
        .map(|workspace| EncryptionContext { workspace, ..context() })
        .collect();
    let own = context();
    let decrypts = join_all((0..50).map(|_| kms.decrypt(&own, &wrapped)));
    let generates = join_all((0..150).map(|n| kms.generate_data_key(&contexts[n % 40], now())));
    let (decrypted, generated) = join(decrypts, generates).await;
    assert!(decrypted.iter().all(Result::is_ok) && generated.iter().all(Result::is_ok));
    assert_eq!(endpoint.max_in_flight(), 50);
    assert_eq!(endpoint.in_flight_of(own.workspace.as_str()), (0, 5));
    assert_eq!((endpoint.decrypts(), endpoint.generates()), (50, 151));
}

#[tokio::test]
async fn a_stopped_kms_is_transient_and_found_again() {
    let (mut endpoint, arn, wrapped) = endpoint_with_key().await;
    let kms = endpoint.kms(&arn);
    endpoint.stop().await;
    assert!(is_transient(&kms.decrypt(&context(), &wrapped).await));
    endpoint.restart().await;
    assert!(kms.decrypt(&context(), &wrapped).await.is_ok());
}

#[tokio::test]
async fn missing_credentials_are_transient() {
    let (endpoint, arn, wrapped) = endpoint_with_key().await;
    let mut sdk = sdk_config().into_builder();
    sdk.set_credentials_provider(None);
    let config = AwsKmsConfig { endpoint: Some(endpoint.url()), ..config(&arn) };
    let kms = AwsKms::new(config, &sdk.build()).unwrap();
    assert!(is_transient(&kms.decrypt(&context(), &wrapped).await));
    assert_eq!(endpoint.decrypts(), 0);
}

/// An outage uses the retries up; they come back with time alone, and another
/// client's are its own.
#[tokio::test]
async fn retries_come_back_after_an_outage() {
    let (endpoint, arn, wrapped) = endpoint_with_key().await;
    let (kms, other) = (endpoint.kms(&arn), endpoint.kms(&arn));
    let context = context();
    endpoint.fault(Fault::Throttle);
    let results = join_all((0..70).map(|_| kms.decrypt(&context, &wrapped))).await;
    assert!(results.iter().all(is_transient));
    assert!(endpoint.decrypts() < 70 * 3, "retries are limited");
    endpoint.heal();

    endpoint.fault_times(2, Fault::Throttle);
    assert!(other.decrypt(&context, &wrapped).await.is_ok());

    let recovers = async {
        loop {
            endpoint.heal();
            endpoint.fault_times(1, Fault::Throttle);
            if kms.decrypt(&context, &wrapped).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), recovers).await.expect("retries again");
}
