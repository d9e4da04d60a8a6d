//! Stands before a KMS: how many calls it gets, of whom, and none while it is
//! down.

mod breaker;
mod places;

use std::{
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, timeout_at};

use self::{breaker::Breaker, places::Places};
use super::{EncryptionContext, Kms, KmsError};
use crate::domain::{Clock, KeyMaterial, Rates, Timestamp, WorkspaceId, WrappedDataKey};

/// Bounds of a [`Guarded`] KMS.
#[derive(Debug, Clone, Copy)]
pub struct GuardConfig {
    /// Longest time of a call, the wait for its turn included.
    pub limit: Duration,
    /// Calls at the same time; others wait for their turn.
    pub max_in_flight: NonZeroU16,
    /// How many of them may be of one workspace.
    pub max_in_flight_per_workspace: NonZeroU16,
    /// Calls of one workspace per second, once its burst is used up.
    pub calls_per_second: NonZeroU32,
    /// Calls that one workspace may make at once.
    pub burst: NonZeroU32,
    /// Transient failures in a row, of more than one workspace, after which the
    /// KMS is taken to be down.
    pub failures: NonZeroU32,
    /// First and longest time for which it is not asked then. Half of each is
    /// random.
    pub pauses: (Duration, Duration),
}

impl Default for GuardConfig {
    /// 2.8 s per call (callers are promised an answer within 3 s); 50 in
    /// flight, 5 of one workspace; 20 calls per second and workspace after 400
    /// at once; down after 5 failures, for 1 s to 5 s.
    ///
    /// A workspace in use makes one call in 15 minutes. One that is given as
    /// many data keys as it may have makes 300, and 100 when none of them is in
    /// memory. AWS KMS allows an account at least 5,500 calls per second and
    /// region.
    fn default() -> Self {
        Self {
            limit: Duration::from_millis(2_800),
            max_in_flight: const { NonZeroU16::new(50).unwrap() },
            max_in_flight_per_workspace: const { NonZeroU16::new(5).unwrap() },
            calls_per_second: const { NonZeroU32::new(20).unwrap() },
            burst: const { NonZeroU32::new(400).unwrap() },
            failures: const { NonZeroU32::new(5).unwrap() },
            pauses: (Duration::from_secs(1), Duration::from_secs(5)),
        }
    }
}

/// A [`Kms`] that no workspace can use up, and that is left alone while it is
/// down.
///
/// There is one breaker for all keys and operations: KMS is one endpoint with
/// one request quota. A key that is disabled or denied is an answer, and no
/// failure of the KMS.
pub struct Guarded {
    kms: Arc<dyn Kms>,
    clock: Arc<dyn Clock>,
    limit: Duration,
    breaker: Breaker,
    budgets: Rates<WorkspaceId>,
    places: Places,
}

impl Guarded {
    /// Guards a KMS. Its calls need a Tokio runtime with time.
    pub fn new(kms: Arc<dyn Kms>, clock: Arc<dyn Clock>, config: GuardConfig) -> Self {
        let (each, burst) = (config.calls_per_second, config.burst);
        Self {
            kms,
            limit: config.limit,
            breaker: Breaker::new(&config),
            budgets: Rates::per_second(each, burst, Arc::clone(&clock)),
            places: Places::new(&config),
            clock,
        }
    }

    /// Makes a call when it is the workspace's turn.
    async fn call<T>(
        &self,
        workspace: &WorkspaceId,
        call: impl Future<Output = Result<T, KmsError>> + Send,
    ) -> Result<T, KmsError> {
        let down = |wait| KmsError::Down { wait };
        // What is refused for that costs nothing of the budget.
        self.breaker.check(workspace, self.clock.monotonic()).map_err(down)?;
        self.budgets.count(workspace).map_err(|wait| KmsError::OverBudget { wait })?;
        let deadline = Instant::now() + self.limit;
        let Ok(Some(_place)) = timeout_at(deadline, self.places.take(workspace)).await else {
            return Err(KmsError::Transient("too many calls wait for their turn"));
        };
        let ticket = self.breaker.admit(workspace, self.clock.monotonic()).map_err(down)?;
        let start = Instant::now();
        match timeout_at(deadline, call).await {
            Ok(outcome) => {
                match &outcome {
                    Err(KmsError::Transient(_)) => ticket.failed(self.clock.monotonic()),
                    // A refusal comes from a KMS that works.
                    _ => ticket.answered(),
                }
                outcome
            }
            Err(_) => {
                // A call that had to wait for its turn gave the KMS too little
                // time to blame it.
                if start.elapsed() >= self.limit / 2 {
                    ticket.failed(self.clock.monotonic());
                }
                Err(KmsError::Transient("no answer within the limit of a call"))
            }
        }
    }
}

#[async_trait]
impl Kms for Guarded {
    async fn generate_data_key(
        &self,
        context: &EncryptionContext,
        now: Timestamp,
    ) -> Result<WrappedDataKey, KmsError> {
        self.call(&context.workspace, self.kms.generate_data_key(context, now)).await
    }

    async fn decrypt(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<KeyMaterial, KmsError> {
        self.call(&context.workspace, self.kms.decrypt(context, wrapped)).await
    }

    async fn rewrap(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<WrappedDataKey, KmsError> {
        self.call(&context.workspace, self.kms.rewrap(context, wrapped)).await
    }

    fn key_name(&self) -> &str {
        self.kms.key_name()
    }

    fn tidy(&self) {
        self.budgets.tidy();
        self.kms.tidy();
    }
}
