//! Which calls go on, and how long: rates, turns of workspaces, deadlines.
//!
//! All of it comes after authorization and before the store and the KMS are
//! asked. What is refused here, is refused for the load alone: it leaves no
//! audit line, and the log tells of it once a second at most.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    Caller, Error, Limits, Secrets,
    rates::Rates,
    seldom::Seldom,
    shares::{self, Shares},
    turns::{self, Turns},
    values::ValueTurns,
};
use crate::domain::{CallerId, Clock, Deadline, WorkspaceId};

/// Names that weigh as much as a call of few.
const NAMES_PER_WEIGHT: usize = 10;

/// Of the largest calls.
const HEAVIEST: u32 = 8;

/// How much one call takes of what its workspace may have done at once.
#[derive(Clone, Copy)]
pub(super) struct Weight(u32);

impl Weight {
    /// A change, or a look at one secret.
    pub(super) const LIGHT: Self = Self(1);
    /// A template.
    pub(super) const DOCUMENT: Self = Self(HEAVIEST);

    /// So many secrets.
    pub(super) fn of(names: usize) -> Self {
        Self(u32::try_from(names.div_ceil(NAMES_PER_WEIGHT)).unwrap_or(u32::MAX).clamp(1, HEAVIEST))
    }
}

/// What a workspace and a caller may have.
pub(super) struct Admission {
    of_callers: Rates<CallerId>,
    of_workspaces: Rates<WorkspaceId>,
    turns: Arc<Turns<WorkspaceId>>,
    documents: Arc<Shares<WorkspaceId>>,
    redactions: Arc<Shares<WorkspaceId>>,
    pub(super) values: ValueTurns,
    refused: Seldom,
}

/// A turn of a call: it ends with the call.
pub(super) type Turn = turns::Turn<WorkspaceId>;

/// The place of a call that holds much memory, or long.
pub(super) type Place = shares::Place<WorkspaceId>;

impl Admission {
    pub(super) fn new(limits: &Limits, clock: &Arc<dyn Clock>) -> Self {
        let share = |most| Shares::new(usize::MAX, most);
        Self {
            of_callers: Rates::per_second(limits.caller_calls_per_second, Arc::clone(clock)),
            of_workspaces: Rates::per_second(limits.workspace_calls_per_second, Arc::clone(clock)),
            turns: Turns::new(limits.workspace_calls_at_once.get(), limits.workspace_calls),
            documents: share(limits.workspace_documents),
            redactions: share(limits.workspace_redactions),
            values: ValueTurns::new(),
            refused: Seldom::default(),
        }
    }

    /// Forgets those who have all their calls left.
    pub(super) fn tidy(&self) {
        self.of_callers.tidy();
        self.of_workspaces.tidy();
    }

    fn told<T>(
        &self,
        caller: &CallerId,
        workspace: Option<&WorkspaceId>,
        admitted: Result<T, Error>,
    ) -> Result<T, Error> {
        if let Err(error) = &admitted
            && let Some(unlogged) = self.refused.now()
        {
            let (reason, workspace) = (error.reason(), workspace.map(WorkspaceId::as_str));
            tracing::warn!(%caller, workspace, reason, unlogged, "calls refused for load");
        }
        admitted
    }
}

impl Secrets {
    /// Counts a call of this caller, whatever it is.
    ///
    /// # Errors
    /// [`Error::RateLimited`], with the time after which one is allowed.
    pub fn count_call(&self, caller: &CallerId) -> Result<(), Error> {
        let counted = self.admission.of_callers.count(caller);
        self.admission.told(caller, None, counted)
    }

    /// A deadline so long from now.
    pub fn deadline(&self, time: Duration) -> Deadline {
        Deadline::after(time, &*self.clock)
    }

    /// How long it is until a deadline.
    pub fn left(&self, deadline: Deadline) -> Duration {
        deadline.left(&*self.clock)
    }

    /// Waits for the turn of an authorized call. A call that had to wait for
    /// half of its time is refused: what is left may be too short for it, and it
    /// may be repeated elsewhere.
    pub(super) async fn turn(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
        weight: Weight,
    ) -> Result<Turn, Error> {
        self.counted(caller, workspace)?;
        let turn = self.admission.turns.wait(workspace, weight.0);
        let turn = timeout(self.left(caller.deadline) / 2, turn).await;
        let turn = turn.ok().flatten().ok_or(Error::Overloaded);
        self.admission.told(&caller.id, Some(workspace), turn)
    }

    /// Counts an authorized call of a workspace, unless it is too late for it.
    pub(super) fn counted(&self, caller: &Caller, workspace: &WorkspaceId) -> Result<(), Error> {
        self.in_due_time(caller)?;
        let counted = self.admission.of_workspaces.count(workspace);
        self.admission.told(&caller.id, Some(workspace), counted)
    }

    /// The place of a document.
    pub(super) fn document(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
    ) -> Result<Place, Error> {
        let place = self.admission.documents.take(workspace).ok_or(Error::Overloaded);
        self.admission.told(&caller.id, Some(workspace), place)
    }

    /// The place of a stream of Redact.
    pub(super) fn redaction(
        &self,
        caller: &Caller,
        workspace: &WorkspaceId,
    ) -> Result<Place, Error> {
        let place = self.admission.redactions.take(workspace).ok_or(Error::Overloaded);
        self.admission.told(&caller.id, Some(workspace), place)
    }

    /// Refuses to begin what nobody waits for any more.
    pub(super) fn in_due_time(&self, caller: &Caller) -> Result<(), Error> {
        if self.left(caller.deadline).is_zero() { Err(Error::Timeout) } else { Ok(()) }
    }

    /// Gives work up at the deadline: only what changes nothing, or goes on
    /// elsewhere. Of the store and the KMS nothing is asked any more then; an
    /// answer under way is let go, and an unwrapping goes on for those who will
    /// want the key.
    pub(super) async fn in_time<T>(
        &self,
        caller: &Caller,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.in_due_time(caller)?;
        let left = self.left(caller.deadline);
        timeout(left, work).await.unwrap_or(Err(Error::Timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_weigh_what_they_ask_for() {
        let weights = [0, 1, 10, 11, 100, 1_000].map(|names| Weight::of(names).0);
        assert_eq!(weights, [1, 1, 1, 2, 8, 8]);
    }
}
