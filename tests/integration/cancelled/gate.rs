//! Parts of the service that stop before and after all that they do, until they
//! are told to go on.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{Semaphore, watch};
use workflow_secrets::{
    domain::{KeyMaterial, RequestId, Revision, Timestamp, WorkspaceId, WrappedDataKey},
    kms::{EncryptionContext, Kms, KmsError},
    store::{Batch, Commit, Key, Record, Shredded, Store, StoreError, WorkspacesCursor},
};

/// Where they wait.
pub(super) struct Gate {
    steps: Semaphore,
    waiting: watch::Sender<usize>,
    passed: watch::Sender<usize>,
}

struct Waiting<'a>(&'a Gate);

impl<'a> Waiting<'a> {
    fn at(gate: &'a Gate) -> Self {
        gate.waiting.send_modify(|waiting| *waiting += 1);
        Self(gate)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

impl Default for Gate {
    fn default() -> Self {
        let steps = Semaphore::new(0);
        Self { steps, waiting: watch::Sender::new(0), passed: watch::Sender::new(0) }
    }
}

impl Gate {
    async fn pass(&self) {
        let waiting = Waiting::at(self);
        self.steps.acquire().await.unwrap().forget();
        drop(waiting);
        self.passed.send_modify(|passed| *passed += 1);
    }

    /// The same for a thread.
    fn pass_blocking(&self) {
        let waiting = Waiting::at(self);
        loop {
            if let Ok(step) = self.steps.try_acquire() {
                step.forget();
                break;
            }
            thread::sleep(Duration::from_micros(200));
        }
        drop(waiting);
        self.passed.send_modify(|passed| *passed += 1);
    }

    pub(super) fn open(&self) {
        self.steps.add_permits(1_000_000);
    }

    pub(super) fn nobody_waits(&self) -> bool {
        *self.waiting.borrow() == 0
    }

    /// Drives a call until so many steps are done and it is about to do the next,
    /// and drops it; what it answers if it ends before.
    pub(super) async fn cut<T>(&self, call: impl Future<Output = T>, steps: usize) -> Option<T> {
        self.steps.forget_permits(usize::MAX);
        let stepping = async {
            for step in 0..=steps {
                self.waiting.subscribe().wait_for(|waiting| *waiting > 0).await.unwrap();
                if step == steps {
                    return;
                }
                let before = *self.passed.borrow();
                self.steps.add_permits(1);
                self.passed.subscribe().wait_for(|passed| *passed > before).await.unwrap();
            }
        };
        tokio::select! {
            biased;
            answer = call => Some(answer),
            () = stepping => None,
        }
    }
}

/// Stops before and after each call.
pub(super) struct GatedStore(pub(super) Arc<Gate>, pub(super) Arc<dyn Store>);

impl GatedStore {
    async fn between<T>(&self, call: impl Future<Output = T>) -> T {
        self.0.pass().await;
        let answer = call.await;
        self.0.pass().await;
        answer
    }
}

#[async_trait]
impl Store for GatedStore {
    async fn read_at(
        &self,
        workspace: &WorkspaceId,
        keys: &[Key],
    ) -> Result<(Option<Revision>, Vec<Option<Record>>), StoreError> {
        self.between(self.1.read_at(workspace, keys)).await
    }

    async fn commit_at(
        &self,
        workspace: &WorkspaceId,
        batch: Batch,
    ) -> Result<(Commit, Option<Revision>), StoreError> {
        self.between(self.1.commit_at(workspace, batch)).await
    }

    async fn shred(
        &self,
        workspace: &WorkspaceId,
        tombstone: Record,
    ) -> Result<Shredded, StoreError> {
        self.between(self.1.shred(workspace, tombstone)).await
    }

    async fn revision(&self, workspace: &WorkspaceId) -> Result<Option<Revision>, StoreError> {
        self.between(self.1.revision(workspace)).await
    }

    async fn request(
        &self,
        workspace: &WorkspaceId,
        id: &RequestId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.between(self.1.request(workspace, id)).await
    }

    async fn scan(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        self.between(self.1.scan(workspace, prefix, after, limit)).await
    }

    async fn keys(
        &self,
        workspace: &WorkspaceId,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Key>, StoreError> {
        self.between(self.1.keys(workspace, prefix, limit)).await
    }

    async fn workspaces(
        &self,
        cursor: Option<&WorkspacesCursor>,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspacesCursor>), StoreError> {
        self.between(self.1.workspaces(cursor)).await
    }

    async fn health(&self) -> Result<(), StoreError> {
        self.between(self.1.health()).await
    }
}

/// Stops before and after each call.
pub(super) struct GatedKms<K>(pub(super) Arc<Gate>, pub(super) Arc<K>);

#[async_trait]
impl<K: Kms> Kms for GatedKms<K> {
    async fn generate_data_key(
        &self,
        context: &EncryptionContext,
        now: Timestamp,
    ) -> Result<WrappedDataKey, KmsError> {
        self.0.pass().await;
        let answer = self.1.generate_data_key(context, now).await;
        self.0.pass().await;
        answer
    }

    async fn decrypt(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<KeyMaterial, KmsError> {
        self.0.pass().await;
        let answer = self.1.decrypt(context, wrapped).await;
        self.0.pass().await;
        answer
    }

    async fn rewrap(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDataKey,
    ) -> Result<WrappedDataKey, KmsError> {
        self.0.pass().await;
        let answer = self.1.rewrap(context, wrapped).await;
        self.0.pass().await;
        answer
    }

    fn key_name(&self) -> &str {
        self.1.key_name()
    }
}

/// Stops before and after it takes audit lines.
pub(super) struct GatedSink(pub(super) Arc<Gate>, pub(super) Arc<Mutex<Vec<u8>>>);

impl Write for GatedSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.pass_blocking();
        self.1.lock().unwrap().extend_from_slice(bytes);
        self.0.pass_blocking();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
