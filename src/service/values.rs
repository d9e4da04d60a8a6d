//! How many values are in memory at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Values in turn together.
const VALUES: u32 = 128;

/// Up to here, a call asks for few.
const FEW: usize = 8;

/// Values of all calls that ask for many, from the first that is opened to the
/// answer: these calls wait for each other, so that not all their values are in
/// memory at once. Calls for few wait for nobody.
///
/// A turn is for work and not for waiting: records are read and the active data
/// key is unwrapped before it, or one workspace would hold up others. Earlier
/// versions, and values of a data key that was replaced, are the exception.
pub(super) struct ValueTurns(Arc<Semaphore>);

/// The turn of a call, once it has come. Goes along with the answer, until that
/// is counted.
#[derive(Clone)]
pub struct ValueTurn {
    values: u32,
    permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl ValueTurn {
    /// For an answer of so many values.
    pub(super) fn of(values: usize) -> Self {
        let many = if values <= FEW { 0 } else { values };
        Self { values: u32::try_from(many).map_or(VALUES, |many| many.min(VALUES)), permit: None }
    }

    /// The same, if it is of any use to know when its answer is counted.
    pub fn held(self) -> Option<Self> {
        self.permit.is_some().then_some(self)
    }

    /// Whether it is yet to come.
    pub(super) fn awaited(&self) -> bool {
        self.values > 0 && self.permit.is_none()
    }
}

impl ValueTurns {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(VALUES as usize)))
    }

    /// Waits for a turn, once.
    pub(super) async fn wait(&self, turn: &mut ValueTurn) {
        if turn.awaited() {
            // It is never closed.
            let permit = Arc::clone(&self.0).acquire_many_owned(turn.values).await;
            turn.permit = permit.ok().map(Arc::new);
        }
    }
}
