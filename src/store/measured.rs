//! A store whose calls are timed and traced, whatever its engine.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use tracing::{Instrument as _, Span, field};

use super::{Batch, Commit, Key, Record, Shredded, Store, StoreError, WorkspacesCursor};
use crate::{
    domain::{RequestId, Revision, WorkspaceId},
    metrics::{Metrics, Outcome, StoreOperation},
};

/// [`Store`] with a span and a duration for each call. Neither tells whose
/// records they are.
pub struct MeasuredStore {
    store: Arc<dyn Store>,
    metrics: Metrics,
}

impl MeasuredStore {
    /// Measures the calls to `store`.
    pub fn new(store: Arc<dyn Store>, metrics: Metrics) -> Self {
        Self { store, metrics }
    }

    async fn timed<T: Send>(
        &self,
        operation: StoreOperation,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let span = tracing::debug_span!(
            "store",
            "otel.name" = operation.span(),
            "otel.kind" = "client",
            "otel.status_code" = field::Empty,
            "error.type" = field::Empty,
        );
        let (metrics, start) = (&self.metrics, Instant::now());
        let outcome = Outcome::Abandoned;
        let mut timed = Timed { metrics, operation, span: span.clone(), start, outcome };
        let result = call.instrument(span).await;
        timed.outcome = match &result {
            Ok(_) => Outcome::Ok,
            Err(StoreError::Unavailable(_)) => Outcome::Unavailable,
            Err(StoreError::Full) => Outcome::Full,
            Err(StoreError::NotReplicated { .. }) => Outcome::NotReplicated,
            Err(StoreError::Malformed(_)) => Outcome::Malformed,
        };
        result
    }
}

/// Tells its duration at its end: also of a call whose caller no longer waits,
/// since a slow store makes callers go.
struct Timed<'a> {
    metrics: &'a Metrics,
    operation: StoreOperation,
    span: Span,
    start: Instant,
    outcome: Outcome,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.metrics.store_call(self.operation, self.outcome, self.start.elapsed());
        if self.outcome != Outcome::Ok {
            self.span.record("error.type", self.outcome.as_str());
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

#[async_trait]
impl Store for MeasuredStore {
    async fn read_at(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<(Option<Revision>, Vec<Option<Record>>), StoreError> {
        self.timed(StoreOperation::Read, self.store.read_at(workspace, keys)).await
    }

    async fn commit_at(
        &self,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(Commit, Option<Revision>), StoreError> {
        self.timed(StoreOperation::Commit, self.store.commit_at(workspace, batch)).await
    }

    async fn revision(&self, workspace: &WorkspaceId) -> Result<Option<Revision>, StoreError> {
        self.timed(StoreOperation::Revision, self.store.revision(workspace)).await
    }

    async fn shred(
        &self,
        workspace: &WorkspaceId,
        tombstone: Record,
    ) -> Result<Shredded, StoreError> {
        self.timed(StoreOperation::Shred, self.store.shred(workspace, tombstone)).await
    }

    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.timed(StoreOperation::Request, self.store.request(workspace, id)).await
    }

    async fn scan(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        self.timed(StoreOperation::Scan, self.store.scan(workspace, prefix, after, limit)).await
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError> {
        self.timed(StoreOperation::Keys, self.store.keys(workspace, prefix, limit)).await
    }

    async fn workspaces(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError> {
        self.timed(StoreOperation::Workspaces, self.store.workspaces(cursor)).await
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.timed(StoreOperation::Health, self.store.health()).await
    }
}
