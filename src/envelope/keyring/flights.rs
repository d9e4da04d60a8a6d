//! Outcomes under way: callers for one slot share one.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::watch;

use super::{Inner, KeyError, Outcome, Slot};
use crate::{domain::WorkspaceId, kms::KmsError};

/// An outcome under way; `None` until it is known.
type Flight = watch::Receiver<Option<Outcome>>;

/// Whoever starts a flight: its number, and where to tell its outcome.
type Start = (u64, watch::Sender<Option<Outcome>>);

#[derive(Default)]
pub(super) struct Flights {
    /// With their numbers: one that was taken off the table must neither be
    /// taken for its successor nor leave a key behind.
    flying: HashMap<Slot, (u64, Flight)>,
    started: u64,
}

impl Flights {
    /// Joins the flight of a slot. If there is none, the caller has to start
    /// it and tell its outcome.
    pub(super) fn board(&mut self, slot: &Slot) -> (Flight, Option<Start>) {
        if let Some((_, flight)) = self.flying.get(slot) {
            return (flight.clone(), None);
        }
        let (tell, flight) = watch::channel(None);
        self.started += 1;
        self.flying.insert(slot.clone(), (self.started, flight.clone()));
        (flight, Some((self.started, tell)))
    }

    /// Whether a flight is still on the table.
    pub(super) fn flies(&self, slot: &Slot, number: u64) -> bool {
        self.flying.get(slot).is_some_and(|(flying, _)| *flying == number)
    }

    /// Takes all flights of a workspace off the table.
    pub(super) fn evict(&mut self, workspace: &WorkspaceId) {
        self.flying.retain(|(flying, _), _| flying != workspace);
    }
}

/// Takes a flight off the table however its task ends.
pub(super) struct Landing {
    pub(super) inner: Arc<Inner>,
    pub(super) slot: Slot,
    pub(super) number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        if state.flights.flies(&self.slot, self.number) {
            state.flights.flying.remove(&self.slot);
        }
    }
}

/// Waits for the outcome of a flight.
pub(super) async fn landed(mut flight: Flight) -> Outcome {
    match flight.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(outcome)) => outcome.clone(),
        // Its task panicked or the process is going down.
        _ => Err(KeyError::Kms(KmsError::Transient("unwrapping was interrupted"))),
    }
}
