//! AWS KMS.

mod classify;
mod key_id;

use std::{collections::HashMap, num::NonZeroU32, time::Duration};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_kms::{
    Client,
    config::{
        retry::{RetryConfig, RetryPartition, TokenBucket},
        timeout::TimeoutConfig,
    },
    primitives::Blob,
    types::{DataKeySpec, EncryptionAlgorithmSpec},
};
use zeroize::Zeroizing;

pub use self::key_id::{KmsKeyId, PreviousKey};
use super::{EncryptionContext, Kms, KmsError};
use crate::domain::{KeyMaterial, Timestamp, WrappedDataKey};

/// Which key to use, and how far to go for it.
#[derive(Debug, Clone)]
pub struct AwsKmsConfig {
    /// Wraps new data keys, and unwraps all that no previous key wrapped.
    pub key: KmsKeyId,
    /// Keys that wrapped data keys before `key` did.
    pub previous_keys: Vec<PreviousKey>,
    /// Instead of the region's endpoint. Data keys cross it in the clear
    /// unless it is `https://`.
    pub endpoint: Option<String>,
    /// `None`: the region of `key` if it is an ARN, or else what the
    /// environment, the profile or the instance says.
    pub region: Option<String>,
    /// Limit of one attempt, with its connection and its credentials.
    pub attempt_timeout: Duration,
    /// Limit of a call, with its retries.
    pub operation_timeout: Duration,
    /// Attempts per call, the first one included.
    pub max_attempts: NonZeroU32,
}

impl AwsKmsConfig {
    /// `key` alone, and the default limits: 1 s per attempt, 2.8 s per call
    /// (callers are promised an answer within 3 s), 3 attempts.
    pub fn new(key: KmsKeyId) -> Self {
        Self {
            key,
            previous_keys: Vec::new(),
            endpoint: None,
            region: None,
            attempt_timeout: Duration::from_secs(1),
            operation_timeout: Duration::from_millis(2_800),
            max_attempts: NonZeroU32::MIN.saturating_add(2),
        }
    }

    /// The region to call: the configured one, or else the one found.
    ///
    /// # Errors
    /// There is none, or a key is of another region.
    pub fn region(&self, found: Option<&Region>) -> Result<Region, AwsKmsError> {
        let region =
            configured_region(self).or_else(|| found.cloned()).ok_or(AwsKmsError::NoRegion)?;
        for key in self.previous_keys.iter().map(PreviousKey::key).chain([&self.key]) {
            if key.region().is_some_and(|of_key| of_key != region.as_ref()) {
                let (key, region) = (key.clone(), region.to_string());
                return Err(AwsKmsError::RegionMismatch { key, region });
            }
        }
        Ok(region)
    }
}

/// Why the adapter cannot start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AwsKmsError {
    /// Neither configured nor found.
    #[error("no AWS region: configure one, or name the KMS key by its ARN")]
    NoRegion,
    /// KMS answers for keys of its own region only.
    #[error("the KMS key {key:?} is not of the region {region}")]
    RegionMismatch {
        /// The key.
        key: KmsKeyId,
        /// The region in use.
        region: String,
    },
}

/// Environment variables by which the SDK prints bodies, plaintext keys
/// included, whatever the operation: read by aws-smithy-runtime
/// (`client/orchestrator/http.rs`) and aws-sigv4 (`http_request/sign.rs`) at
/// each call.
const BODY_LOGGING: [&str; 2] = ["LOG_SENSITIVE_BODIES", "LOG_SIGNABLE_BODY"];

/// An environment variable that would print keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the environment variable {0} makes the AWS SDK log keys: unset it")]
pub struct BodyLogging(pub &'static str);

/// What in the environment would make the SDK log bodies: start only if there
/// is nothing, as the SDK reads the process's environment at each call. A
/// variable counts if it is set, to whatever value.
pub fn body_logging(is_set: impl Fn(&str) -> bool) -> Vec<BodyLogging> {
    BODY_LOGGING.into_iter().filter(|name| is_set(name)).map(BodyLogging).collect()
}

/// [`Kms`] on AWS KMS, with a symmetric encryption key.
pub struct AwsKms {
    client: Client,
    key: KmsKeyId,
    previous_keys: Vec<PreviousKey>,
    operation_timeout: Duration,
}

impl AwsKms {
    /// With credentials from the SDK's default chain (environment, profile,
    /// web identity, container, instance). Makes no call to KMS.
    ///
    /// # Errors
    /// See [`AwsKmsError`].
    pub async fn connect(config: AwsKmsConfig) -> Result<Self, AwsKmsError> {
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
        if let Some(region) = configured_region(&config) {
            loader = loader.region(region);
        }
        Self::new(config, &loader.load().await)
    }

    /// With credentials, HTTP client and default region of `sdk`.
    ///
    /// # Errors
    /// See [`AwsKmsError`].
    pub fn new(config: AwsKmsConfig, sdk: &SdkConfig) -> Result<Self, AwsKmsError> {
        let region = config.region(sdk.region())?;
        // The SDK's own bucket is shared by all clients of the process and
        // refills on success only. Behind the data-key cache successes are
        // rare, so after an outage it would long allow no retry.
        let retry_quota = TokenBucket::builder().refill_rate(5.0).build();
        let mut client = aws_sdk_kms::config::Builder::from(sdk)
            .region(region)
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(config.max_attempts.get())
                    // Full jitter over 100 ms, then 200 ms, so that three
                    // attempts fit the call's limit.
                    .with_initial_backoff(Duration::from_millis(100)),
            )
            .retry_partition(
                RetryPartition::custom("workflow-secrets").token_bucket(retry_quota).build(),
            )
            .timeout_config(
                TimeoutConfig::builder().operation_attempt_timeout(config.attempt_timeout).build(),
            );
        if let Some(endpoint) = config.endpoint {
            client = client.endpoint_url(endpoint);
        }
        Ok(Self {
            client: Client::from_conf(client.build()),
            key: config.key,
            previous_keys: config.previous_keys,
            operation_timeout: config.operation_timeout,
        })
    }

    /// The key to pass to Decrypt. A stored name only chooses among the
    /// configured keys: whoever can write to the store cannot make this
    /// service use a key of theirs.
    fn key_of(&self, wrapped: &WrappedDataKey) -> &str {
        let previous = self.previous_keys.iter().find(|key| key.is(&wrapped.kms_key_id));
        previous.map_or(&self.key, PreviousKey::key).as_str()
    }

    /// Runs a call within the limit of the operation.
    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, KmsError>>,
    ) -> Result<T, KmsError> {
        tokio::time::timeout(self.operation_timeout, call)
            .await
            .unwrap_or(Err(KmsError::Transient("no answer within the limit of the operation")))
    }
}

fn configured_region(config: &AwsKmsConfig) -> Option<Region> {
    config.region.as_deref().or(config.key.region()).map(|region| Region::new(region.to_owned()))
}

fn pairs(context: &EncryptionContext) -> Option<HashMap<String, String>> {
    Some(context.pairs().into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Longest blob that Decrypt takes (AWS KMS API Reference, `CiphertextBlob`).
const MAX_BLOB_BYTES: usize = 6_144;

#[async_trait]
impl Kms for AwsKms {
    /// `GenerateDataKeyWithoutPlaintext`: makes the same key as
    /// `GenerateDataKey`, but its plaintext never leaves KMS.
    async fn generate_data_key(
        &self,
        context: &EncryptionContext,
        now: Timestamp,
    ) -> Result<WrappedDataKey, KmsError> {
        let call = async {
            self.client
                .generate_data_key_without_plaintext()
                .key_id(self.key.as_str())
                .key_spec(DataKeySpec::Aes256)
                .set_encryption_context(pairs(context))
                .send()
                .await
                .map_err(|error| classify::generate(&error))
        };
        let answer = self.bounded(call).await?;
        match (answer.ciphertext_blob.map(Blob::into_inner), answer.key_id) {
            (Some(blob), Some(kms_key_id)) if (1..=MAX_BLOB_BYTES).contains(&blob.len()) => {
                Ok(WrappedDataKey { id: context.data_key, blob, kms_key_id, create_time: now })
            }
            _ => Err(KmsError::Transient("the answer holds no data key")),
        }
    }

    async fn decrypt(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<KeyMaterial, KmsError> {
        check(context, wrapped)?;
        let call = async {
            self.client
                .decrypt()
                .key_id(self.key_of(wrapped))
                .encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
                .ciphertext_blob(Blob::new(wrapped.blob.clone()))
                .set_encryption_context(pairs(context))
                .send()
                .await
                .map_err(|error| classify::decrypt(&error))
        };
        let answer = self.bounded(call).await?;
        let plaintext =
            answer.plaintext.ok_or(KmsError::Transient("the answer holds no plaintext"))?;
        // The SDK decoded it into a buffer of its own, which this takes over.
        let mut plaintext = Zeroizing::new(plaintext.into_inner());
        KeyMaterial::take(&mut plaintext)
            .map_err(|_| KmsError::WrongCiphertext("it holds no 256-bit key"))
    }

    async fn rewrap(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<WrappedDataKey, KmsError> {
        check(context, wrapped)?;
        let call = async {
            self.client
                .re_encrypt()
                .source_key_id(self.key_of(wrapped))
                .source_encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
                .set_source_encryption_context(pairs(context))
                .destination_key_id(self.key.as_str())
                .destination_encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
                .set_destination_encryption_context(pairs(context))
                .ciphertext_blob(Blob::new(wrapped.blob.clone()))
                .send()
                .await
                .map_err(|error| classify::rewrap(&error))
        };
        let answer = self.bounded(call).await?;
        match (answer.ciphertext_blob.map(Blob::into_inner), answer.key_id) {
            (Some(blob), Some(kms_key_id)) if (1..=MAX_BLOB_BYTES).contains(&blob.len()) => {
                Ok(WrappedDataKey { blob, kms_key_id, ..wrapped.clone() })
            }
            _ => Err(KmsError::Transient("the answer holds no data key")),
        }
    }

    fn key_name(&self) -> &str {
        self.key.as_str()
    }
}

/// Refuses what KMS would refuse, without a call.
fn check(context: &EncryptionContext, wrapped: &WrappedDataKey) -> Result<(), KmsError> {
    if context.data_key != wrapped.id {
        return Err(KmsError::WrongCiphertext("another data key than asked for"));
    }
    if !(1..=MAX_BLOB_BYTES).contains(&wrapped.blob.len()) {
        return Err(KmsError::WrongCiphertext("no blob of KMS has this length"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_logging_is_told_by_name() {
        assert_eq!(body_logging(|_| false), []);
        let [bodies, signable] = BODY_LOGGING.map(BodyLogging);
        assert_eq!(body_logging(|name| name == "LOG_SENSITIVE_BODIES"), [bodies]);
        assert_eq!(body_logging(|name| name == "LOG_SIGNABLE_BODY"), [signable]);
        assert_eq!(body_logging(|_| true), [bodies, signable]);
    }

    fn sdk(region: Option<&str>) -> SdkConfig {
        let region = region.map(|r| Region::new(r.to_owned()));
        SdkConfig::builder().behavior_version(BehaviorVersion::v2026_01_12()).region(region).build()
    }

    #[test]
    fn regions_must_be_known_and_agree() {
        let arn = "arn:aws:kms:eu-west-1:111122223333:alias/a";
        let by_alias = AwsKmsConfig::new(KmsKeyId::parse("alias/a").unwrap());
        let by_arn = AwsKmsConfig::new(KmsKeyId::parse(arn).unwrap());
        let start = |config: &AwsKmsConfig, region| {
            AwsKms::new(config.clone(), &sdk(region)).map(|kms| {
                kms.client.config().region().map(ToString::to_string).unwrap_or_default()
            })
        };
        assert_eq!(start(&by_alias, None), Err(AwsKmsError::NoRegion));
        assert_eq!(start(&by_alias, Some("us-east-1")).as_deref(), Ok("us-east-1"));
        assert_eq!(start(&by_arn, Some("us-east-1")).as_deref(), Ok("eu-west-1"));
        let elsewhere = AwsKmsConfig { region: Some("us-east-1".to_owned()), ..by_arn };
        assert!(matches!(start(&elsewhere, None), Err(AwsKmsError::RegionMismatch { .. })));
    }
}
