//! Long calls, which tell their progress while they run.

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::{
    domain::{Deadline, WorkspaceId},
    service::{Caller, Error, Secrets, audit::Action},
};

/// Steps that the reader may lag behind; those that do not fit are not told.
const UNREAD: usize = 8;

/// What is told of a job: steps, of which the last is the report, or an error.
pub type Steps<T> = mpsc::Receiver<Result<T, Error>>;

/// Where a job tells how far it is.
pub(super) struct Progress<T> {
    secrets: Arc<Secrets>,
    reader: mpsc::Sender<Result<T, Error>>,
}

impl<T> Progress<T> {
    /// Tells a step. A job ends with this error, between two changes: whatever
    /// it has done by then holds.
    pub(super) fn tell(&self, step: T) -> Result<(), Error> {
        if self.secrets.ending.is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        match self.reader.try_send(Ok(step)) {
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

impl Secrets {
    /// Starts a job in a task of its own. It ends with its work, soon after its
    /// reader has gone, or when the service shuts down. One audit line is
    /// written before it starts, and one with its outcome.
    pub(super) async fn job<T, F>(
        self: &Arc<Self>,
        caller: &Caller,
        (action, workspace): (Action, Option<WorkspaceId>),
        authorized: Result<(), Error>,
        work: impl FnOnce(Arc<Self>, Progress<T>) -> F,
    ) -> Result<Steps<T>, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let event = |outcome| {
            let event = super::AuditEvent::new(self.clock.now(), caller, action, outcome);
            super::AuditEvent { workspace: workspace.clone(), ..event }
        };
        let first = authorized.as_ref().map_or_else(Error::reason, |()| "started");
        self.audited(caller.deadline, vec![event(first)], authorized).await?;

        let (reader, steps) = mpsc::channel(UNREAD);
        let progress = Progress { secrets: Arc::clone(self), reader: reader.clone() };
        let (secrets, last) = (Arc::clone(self), event("ok"));
        let work = work(Arc::clone(self), progress);
        self.changes.spawn(
            async move {
                let outcome = work.await;
                let outcome_word = outcome.as_ref().map_or_else(Error::reason, |_| "ok");
                let event =
                    super::AuditEvent { time: secrets.clock.now(), outcome: outcome_word, ..last };
                let outcome = secrets.audited(Deadline::NONE, vec![event], outcome).await;
                // The reader may have gone.
                let _ = reader.send(outcome).await;
            }
            .in_current_span(),
        );
        Ok(steps)
    }
}
