//! A KMS whose calls are timed and traced.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use tracing::{Instrument as _, field};

use super::{EncryptionContext, Kms, KmsError};
use crate::{
    domain::{KeyMaterial, Timestamp, WrappedDataKey},
    metrics::{KmsOperation, KmsOutcome, Metrics},
};

/// [`Kms`] with a span and a duration for each call. Neither tells whose key it
/// is.
pub struct MeasuredKms {
    kms: Arc<dyn Kms>,
    metrics: Metrics,
}

impl MeasuredKms {
    /// Measures the calls to `kms`.
    pub fn new(kms: Arc<dyn Kms>, metrics: Metrics) -> Self {
        Self { kms, metrics }
    }

    async fn timed<T: Send>(
        &self,
        operation: KmsOperation,
        call: impl Future<Output = Result<T, KmsError>> + Send,
    ) -> Result<T, KmsError> {
        let span = tracing::debug_span!(
            "kms",
            "otel.name" = operation.span(),
            "otel.kind" = "client",
            "otel.status_code" = field::Empty,
            "error.type" = field::Empty,
        );
        let start = Instant::now();
        let result = call.instrument(span.clone()).await;
        let outcome = match &result {
            Ok(_) => KmsOutcome::Ok,
            Err(KmsError::Transient(_)) => KmsOutcome::Transient,
            Err(KmsError::Down { .. }) => KmsOutcome::Down,
            Err(KmsError::OverBudget { .. }) => KmsOutcome::OverBudget,
            Err(KmsError::KeyUnusable(_)) => KmsOutcome::KeyUnusable,
            Err(KmsError::WrongCiphertext(_)) => KmsOutcome::WrongCiphertext,
        };
        self.metrics.kms_call(operation, outcome, start.elapsed());
        if outcome != KmsOutcome::Ok {
            span.record("error.type", outcome.as_str());
            span.record("otel.status_code", "ERROR");
        }
        result
    }
}

#[async_trait]
impl Kms for MeasuredKms {
    async fn generate_data_key(
        &self,
        context: &EncryptionContext,
        now: Timestamp,
    ) -> Result<WrappedDataKey, KmsError> {
        self.timed(KmsOperation::Generate, self.kms.generate_data_key(context, now)).await
    }

    async fn decrypt(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<KeyMaterial, KmsError> {
        self.timed(KmsOperation::Decrypt, self.kms.decrypt(context, wrapped)).await
    }

    async fn rewrap(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<WrappedDataKey, KmsError> {
        self.timed(KmsOperation::Rewrap, self.kms.rewrap(context, wrapped)).await
    }

    fn key_name(&self) -> &str {
        self.kms.key_name()
    }

    fn tidy(&self) {
        self.kms.tidy();
    }
}
