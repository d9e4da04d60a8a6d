//! Log lines that anybody can cause, at a bounded rate.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// At most one line in this time; the others are only counted.
const EVERY: Duration = Duration::from_secs(1);

/// Lets one event a second through, so that nobody can flood the log.
#[derive(Default)]
pub struct Seldom(Mutex<State>);

#[derive(Default)]
struct State {
    last: Option<Instant>,
    unlogged: u64,
}

impl Seldom {
    /// How many events were not logged since the last that was; `None`: this
    /// one is not to be logged either.
    pub fn now(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| last.elapsed() < EVERY) {
            state.unlogged += 1;
            return None;
        }
        state.last = Some(Instant::now());
        Some(std::mem::take(&mut state.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_event_a_second_is_logged_and_the_others_are_counted() {
        let seldom = Seldom::default();
        assert_eq!(seldom.now(), Some(0));
        for _ in 0..1_000 {
            assert_eq!(seldom.now(), None);
        }
        tokio::time::advance(EVERY).await;
        assert_eq!((seldom.now(), seldom.now()), (Some(1_000), None));
    }
}
