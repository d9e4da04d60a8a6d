//! The AWS adapter, through the real SDK, on an endpoint that behaves.

use std::{
    io,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tracing_subscriber::fmt::MakeWriter;
use workflow_secrets::{
    domain::{DataKeyId, Environment, KeyMaterial, Timestamp, WorkspaceId, WrappedDataKey},
    kms::{
        EncryptionContext, Kms, KmsError,
        aws::{AwsKmsConfig, KmsKeyId, PreviousKey},
    },
};

use crate::support::kms_endpoint::{KmsEndpoint, REGION};

pub(crate) fn context() -> EncryptionContext {
    EncryptionContext {
        environment: Environment::parse("test").unwrap(),
        workspace: WorkspaceId::parse("ws_1").unwrap(),
        data_key: DataKeyId::from_bytes([1; 16]),
    }
}

pub(crate) fn now() -> Timestamp {
    Timestamp::new(1_800_000_000, 0).unwrap()
}

#[track_caller]
pub(crate) fn assert_wrong(result: Result<KeyMaterial, KmsError>) {
    let error = result.err();
    assert!(matches!(error, Some(KmsError::WrongCiphertext(_))), "{error:?}");
}

/// What any KMS must do.
pub(crate) async fn contract(kms: &dyn Kms) {
    let wrapped = kms.generate_data_key(&context(), now()).await.unwrap();
    assert_eq!((wrapped.id, wrapped.create_time), (context().data_key, now()));
    let key = kms.decrypt(&context(), &wrapped).await.unwrap();
    let again = kms.decrypt(&context(), &wrapped).await.unwrap();
    assert_eq!(key.expose(), again.expose());
    assert!(!wrapped.blob.windows(32).any(|bytes| bytes == key.expose()));

    let second = kms.generate_data_key(&context(), now()).await.unwrap();
    let second = kms.decrypt(&context(), &second).await.unwrap();
    assert_ne!(key.expose(), second.expose());

    // Wrapped anew it is the same key, in the same context only.
    let anew = kms.rewrap(&context(), &wrapped).await.unwrap();
    assert_ne!(anew.blob, wrapped.blob);
    assert_eq!((anew.id, anew.create_time), (wrapped.id, wrapped.create_time));
    assert_eq!(kms.decrypt(&context(), &anew).await.unwrap().expose(), key.expose());
    let workspace = WorkspaceId::parse("ws_2").unwrap();
    let elsewhere = EncryptionContext { workspace, ..context() };
    assert_wrong(kms.decrypt(&elsewhere, &anew).await);
    let refused = kms.rewrap(&elsewhere, &wrapped).await.err();
    assert!(matches!(refused, Some(KmsError::WrongCiphertext(_))), "{refused:?}");

    let environment = Environment::parse("prod").unwrap();
    assert_wrong(kms.decrypt(&EncryptionContext { environment, ..context() }, &wrapped).await);
    let workspace = WorkspaceId::parse("ws_2").unwrap();
    assert_wrong(kms.decrypt(&EncryptionContext { workspace, ..context() }, &wrapped).await);
    let id = DataKeyId::from_bytes([2; 16]);
    assert_wrong(kms.decrypt(&context(), &WrappedDataKey { id, ..wrapped.clone() }).await);
    // Both say so, yet it was wrapped under another id.
    let other = EncryptionContext { data_key: id, ..context() };
    assert_wrong(kms.decrypt(&other, &WrappedDataKey { id, ..wrapped.clone() }).await);
    assert_wrong(kms.decrypt(&other, &wrapped).await);
}

#[tokio::test]
async fn keeps_the_contract() {
    let endpoint = KmsEndpoint::start().await;
    contract(&endpoint.kms(&endpoint.create_key())).await;
    assert_eq!((endpoint.generates(), endpoint.decrypts(), endpoint.rewraps()), (2, 8, 2));
}

#[tokio::test]
async fn each_call_names_key_algorithm_and_context() {
    let endpoint = KmsEndpoint::start().await;
    let (arn, mrk) = (endpoint.create_key(), endpoint.create_multi_region_key());
    endpoint.set_alias("alias/secrets", &arn);
    let bare = |arn: &str| arn.rsplit('/').next().unwrap().to_owned();
    let alias_arn = format!("{}alias/secrets", arn.split("key/").next().unwrap());
    for (name, arn) in [
        (arn.clone(), &arn),
        (bare(&arn), &arn),
        ("alias/secrets".to_owned(), &arn),
        (alias_arn, &arn),
        (mrk.clone(), &mrk),
        (bare(&mrk), &mrk),
    ] {
        let kms = endpoint.kms(&name);
        let wrapped = kms.generate_data_key(&context(), now()).await.unwrap();
        assert_eq!(&wrapped.kms_key_id, arn);
        kms.decrypt(&context(), &wrapped).await.unwrap();

        let calls = endpoint.calls();
        let [.., generate, decrypt] = &*calls else { panic!("two calls") };
        assert_eq!(generate.operation, "GenerateDataKeyWithoutPlaintext");
        assert_eq!(decrypt.operation, "Decrypt");
        assert_eq!(decrypt.algorithm, "SYMMETRIC_DEFAULT");
        for call in [generate, decrypt] {
            assert_eq!(call.key_id, name);
            let pairs: Vec<_> = call.context.iter().map(|(k, v)| (&**k, &**v)).collect();
            let expected = [
                ("data_key", "01010101-0101-0101-0101-010101010101"),
                ("environment", "test"),
                ("service", "workflow-secrets"),
                ("workspace", "ws_1"),
            ];
            assert_eq!(pairs, expected);
        }
    }
}

#[tokio::test]
async fn a_previous_key_unwraps_what_it_wrapped() {
    let endpoint = KmsEndpoint::start().await;
    let (old, new) = (endpoint.create_key(), endpoint.create_key());
    endpoint.set_alias("alias/secrets", &old);
    let kms = endpoint.kms("alias/secrets");
    let wrapped = kms.generate_data_key(&context(), now()).await.unwrap();
    endpoint.set_alias("alias/secrets", &new);
    assert_wrong(kms.decrypt(&context(), &wrapped).await);

    let kms = endpoint.kms_with(AwsKmsConfig {
        previous_keys: vec![PreviousKey::parse(&old).unwrap()],
        ..AwsKmsConfig::new(KmsKeyId::parse("alias/secrets").unwrap())
    });
    kms.decrypt(&context(), &wrapped).await.unwrap();
    assert_eq!(endpoint.calls().last().unwrap().key_id, old);

    let wrapped = kms.generate_data_key(&context(), now()).await.unwrap();
    assert_eq!(wrapped.kms_key_id, new);
    kms.decrypt(&context(), &wrapped).await.unwrap();
    assert_eq!(endpoint.calls().last().unwrap().key_id, "alias/secrets");
}

#[tokio::test]
async fn what_a_previous_key_wrapped_is_wrapped_anew_with_the_new_one() {
    let endpoint = KmsEndpoint::start().await;
    let (old, new) = (endpoint.create_key(), endpoint.create_key());
    let wrapped = endpoint.kms(&old).generate_data_key(&context(), now()).await.unwrap();
    let before = endpoint.kms(&old).decrypt(&context(), &wrapped).await.unwrap();
    endpoint.set_alias("alias/secrets", &new);
    let config = || AwsKmsConfig::new(KmsKeyId::parse("alias/secrets").unwrap());
    let previous_keys = vec![PreviousKey::parse(&old).unwrap()];
    let kms = endpoint.kms_with(AwsKmsConfig { previous_keys, ..config() });
    assert_eq!(kms.key_name(), "alias/secrets");
    let anew = kms.rewrap(&context(), &wrapped).await.unwrap();
    assert_eq!(anew.kms_key_id, new);
    let call = endpoint.calls().pop().unwrap();
    assert_eq!((call.operation.as_str(), call.key_id.as_str()), ("ReEncrypt", old.as_str()));
    assert_eq!(
        (call.destination.as_str(), call.algorithm.as_str()),
        ("alias/secrets", "SYMMETRIC_DEFAULT")
    );
    assert_eq!(call.context.len(), 4, "on both sides");
    // From then on the old key is not needed.
    let kms = endpoint.kms_with(config());
    endpoint.set_state(&old, crate::support::kms_endpoint::KeyState::Disabled);
    let after = kms.decrypt(&context(), &anew).await.unwrap();
    assert_eq!(before.expose(), after.expose());
    // What is not known to have wrapped it cannot take it over.
    let refused = kms.rewrap(&context(), &wrapped).await.err();
    assert!(matches!(refused, Some(KmsError::WrongCiphertext(_))), "{refused:?}");

    let before = endpoint.rewraps();
    let id = DataKeyId::from_bytes([9; 16]);
    let renamed = WrappedDataKey { id, ..anew.clone() };
    assert!(kms.rewrap(&context(), &renamed).await.is_err());
    assert!(kms.rewrap(&context(), &WrappedDataKey { blob: vec![], ..anew }).await.is_err());
    assert_eq!(endpoint.rewraps(), before, "no call is made for what cannot be right");
}

#[tokio::test]
async fn a_stored_key_name_has_no_authority() {
    let endpoint = KmsEndpoint::start().await;
    let (ours, theirs) = (endpoint.create_key(), endpoint.create_key());
    let planted = endpoint.kms(&theirs).generate_data_key(&context(), now()).await.unwrap();
    assert_eq!(planted.kms_key_id, theirs);
    assert_wrong(endpoint.kms(&ours).decrypt(&context(), &planted).await);
    assert_eq!(endpoint.calls().last().unwrap().key_id, ours);
}

#[tokio::test]
async fn a_previous_multi_region_key_is_known_in_any_region() {
    let endpoint = KmsEndpoint::start().await;
    let (old, new) = (endpoint.create_multi_region_key(), endpoint.create_key());
    let mut wrapped = endpoint.kms(&old).generate_data_key(&context(), now()).await.unwrap();
    wrapped.kms_key_id = wrapped.kms_key_id.replace(REGION, "us-east-1");
    let kms = endpoint.kms_with(AwsKmsConfig {
        previous_keys: vec![PreviousKey::parse(&old).unwrap()],
        ..AwsKmsConfig::new(KmsKeyId::parse(&new).unwrap())
    });
    kms.decrypt(&context(), &wrapped).await.unwrap();
    assert_eq!(endpoint.calls().last().unwrap().key_id, old);
}

#[tokio::test]
async fn a_changed_or_cut_blob_does_not_unwrap() {
    let endpoint = KmsEndpoint::start().await;
    let kms = endpoint.kms(&endpoint.create_key());
    let wrapped = kms.generate_data_key(&context(), now()).await.unwrap();
    for at in 0..wrapped.blob.len() {
        let mut blob = wrapped.blob.clone();
        blob[at] ^= 1;
        assert_wrong(kms.decrypt(&context(), &WrappedDataKey { blob, ..wrapped.clone() }).await);
        let blob = wrapped.blob[..at].to_vec();
        assert_wrong(kms.decrypt(&context(), &WrappedDataKey { blob, ..wrapped.clone() }).await);
    }
}

#[tokio::test]
async fn lengths_and_ids_are_checked() {
    let endpoint = KmsEndpoint::start().await;
    let arn = endpoint.create_key();
    let kms = endpoint.kms(&arn);
    let wrapped = |blob| WrappedDataKey {
        id: context().data_key,
        blob,
        kms_key_id: arn.clone(),
        create_time: now(),
    };
    for length in [0, 31, 33, 64] {
        let blob = endpoint.encrypt(&arn, &vec![7; length], &context().pairs());
        assert_wrong(kms.decrypt(&context(), &wrapped(blob)).await);
    }
    let good = endpoint.encrypt(&arn, &[7; 32], &context().pairs());
    assert_eq!(kms.decrypt(&context(), &wrapped(good.clone())).await.unwrap().expose(), &[7; 32]);

    let before = endpoint.decrypts();
    assert_wrong(kms.decrypt(&context(), &wrapped(vec![])).await);
    assert_wrong(kms.decrypt(&context(), &wrapped(vec![1; 6_145])).await);
    let id = DataKeyId::from_bytes([2; 16]);
    assert_wrong(kms.decrypt(&context(), &WrappedDataKey { id, ..wrapped(good) }).await);
    assert_eq!(endpoint.decrypts(), before, "no call is made for what cannot be right");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Client, HTTP stack and endpoint run on this thread, so all they log at the
/// most verbose level is caught.
#[tokio::test]
async fn the_most_verbose_log_holds_no_key() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let endpoint = KmsEndpoint::start().await;
    let kms = endpoint.kms(&endpoint.create_key());
    let wrapped = kms.generate_data_key(&context(), now()).await.unwrap();
    kms.decrypt(&context(), &wrapped).await.unwrap();
    let other = EncryptionContext { workspace: WorkspaceId::parse("ws_2").unwrap(), ..context() };
    assert_wrong(kms.decrypt(&other, &wrapped).await);
    drop(guard);

    let log = log.0.lock().unwrap();
    let text = String::from_utf8_lossy(&log);
    assert!(text.contains("read HTTP response body"), "the SDK logged");
    let [key] = &*endpoint.data_keys() else { panic!("one key") };
    let list = format!("{key:?}");
    for shown in [STANDARD.encode(key), hex::encode(key), hex::encode_upper(key), list] {
        // A part would do harm too.
        assert!(!text.contains(&shown[4..24]), "the log holds the key");
    }
    assert!(!log.windows(32).any(|bytes| bytes == key));
}
