//! Tells a KMS that is down from one that is not, by how its last calls went.
//! Decides only; the time is handed in.
//!
//! The crates for this (failsafe, recloser, reliakit-circuit) count failures
//! whosever they are, so one workspace could close the KMS to all; the first
//! two read a clock of their own, and let more than one call through to find
//! out whether the KMS is back.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::GuardConfig;
use crate::domain::WorkspaceId;

/// What a caller is told to wait while another one's call is finding out
/// whether the KMS is back.
const WHILE_PROBED: Duration = Duration::from_millis(500);

/// Opens after a run of failed calls: then no calls are made. After a pause it
/// lets one call through; an answer closes it, a failure begins a longer pause.
///
/// A run that is all of one workspace does not open it: that says something of
/// the workspace, whose failures are remembered elsewhere. And whose probe
/// failed waits one pause longer than others, so that it cannot keep taking
/// the place of a call that would succeed.
pub(super) struct Breaker {
    failures: u32,
    pauses: (Duration, Duration),
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Calls that failed since the last answer.
    run: u32,
    /// Whose the first of them was.
    first: Option<WorkspaceId>,
    /// Others failed too.
    several: bool,
    open: Option<Open>,
}

struct Open {
    pause: Duration,
    until: Duration,
    /// Whose probe failed last.
    last: Option<WorkspaceId>,
    probing: bool,
}

/// A call let through. Dropped without an outcome, it counts for nothing.
pub(super) struct Ticket<'a> {
    breaker: &'a Breaker,
    workspace: &'a WorkspaceId,
    probe: bool,
}

impl Breaker {
    pub(super) fn new(config: &GuardConfig) -> Self {
        let (failures, pauses) = (config.failures.get(), config.pauses);
        Self { failures, pauses, state: Mutex::default() }
    }

    /// Whether a call would be let through now.
    ///
    /// # Errors
    /// How long it is to wait.
    pub(super) fn check(&self, workspace: &WorkspaceId, now: Duration) -> Result<(), Duration> {
        refused(&self.lock(), workspace, now).map_or(Ok(()), Err)
    }

    /// Lets a call through.
    ///
    /// # Errors
    /// As for [`Self::check`].
    pub(super) fn admit<'a>(
        &'a self,
        workspace: &'a WorkspaceId,
        now: Duration,
    ) -> Result<Ticket<'a>, Duration> {
        let mut state = self.lock();
        refused(&state, workspace, now).map_or(Ok(()), Err)?;
        let probe = state.open.as_mut().map(|open| open.probing = true).is_some();
        Ok(Ticket { breaker: self, workspace, probe })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No step under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(state: &State, workspace: &WorkspaceId, now: Duration) -> Option<Duration> {
    let open = state.open.as_ref()?;
    let more = if open.last.as_ref() == Some(workspace) { open.pause } else { Duration::ZERO };
    let wait = open.until.saturating_add(more).saturating_sub(now);
    match (wait.is_zero(), open.probing) {
        (false, _) => Some(wait),
        (true, true) => Some(WHILE_PROBED),
        (true, false) => None,
    }
}

impl Ticket<'_> {
    /// The KMS answered, with whatever. Whoever let the call through when, it is
    /// there.
    pub(super) fn answered(self) {
        let closed = std::mem::take(&mut *self.breaker.lock());
        if closed.open.is_some() {
            tracing::info!("the KMS is back");
        }
    }

    /// The KMS gave no answer that says anything.
    pub(super) fn failed(self, now: Duration) {
        let (first_pause, longest) = self.breaker.pauses;
        let mut state = self.breaker.lock();
        let state = &mut *state;
        match &mut state.open {
            Some(open) if self.probe => {
                open.pause = longest.min(open.pause * 2);
                open.until = now.saturating_add(jittered(open.pause));
                open.last = Some(self.workspace.clone());
            }
            // Of before it opened.
            Some(_) => {}
            None => {
                state.run = state.run.saturating_add(1);
                let first = state.first.get_or_insert_with(|| self.workspace.clone());
                state.several |= first != self.workspace;
                if state.run >= self.breaker.failures && state.several {
                    let until = now.saturating_add(jittered(first_pause));
                    let pause = first_pause;
                    state.open = Some(Open { pause, until, last: None, probing: false });
                    tracing::error!(failures = state.run, "the KMS fails: it is asked less");
                }
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let (true, Some(open)) = (self.probe, &mut self.breaker.lock().open) {
            open.probing = false;
        }
    }
}

/// Half of a pause is random, so that many replicas do not ask at one moment.
fn jittered(pause: Duration) -> Duration {
    // Without randomness all pauses are of full length, which does no harm.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}
