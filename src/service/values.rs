//! How many values are in memory at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of values in turn together, in [`PIECE`]s: 128 of the largest.
const PIECES: u32 = 8 * 1024;
const PIECE: usize = 1024;

/// Up to here, a call asks for few.
const FEW: usize = 8;

/// Values of all calls that ask for many, from the first that is opened to the
/// answer: these calls wait for each other, so that not all their values are in
/// memory at once. Calls for few wait for nobody, and those for small ones seldom.
///
/// A turn is for work and not for waiting: records are read and the active data
/// key is unwrapped before it, or one workspace would hold up others. Earlier
/// versions, and values of a data key that was replaced, are the exception.
pub(super) struct ValueTurns(Arc<Semaphore>);

/// The turn of a call, once it has come. Goes along with the answer, until that
/// is counted.
#[derive(Clone)]
pub struct ValueTurn {
    values: usize,
    permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl ValueTurn {
    /// For an answer of so many values.
    pub(super) fn of(values: usize) -> Self {
        let many = if values <= FEW { 0 } else { values };
        Self { values: many, permit: None }
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
        Self(Arc::new(Semaphore::new(PIECES as usize)))
    }

    /// Waits for a turn, once, of values that lie in records of these lengths: one of
    /// each secret. Of a secret under several aliases the answer has as many copies,
    /// each taken for as long as the longest.
    pub(super) async fn wait(&self, turn: &mut ValueTurn, records: impl Iterator<Item = usize>) {
        if turn.awaited() {
            let (mut count, mut bytes, mut longest) = (0, 0, 0);
            for length in records {
                (count, bytes, longest) = (count + 1, bytes + length, length.max(longest));
            }
            let copies = turn.values.saturating_sub(count);
            let pieces = (bytes + longest.saturating_mul(copies)).div_ceil(PIECE);
            let pieces = u32::try_from(pieces).unwrap_or(PIECES).clamp(1, PIECES);
            // It is never closed.
            let permit = Arc::clone(&self.0).acquire_many_owned(pieces).await;
            turn.permit = permit.ok().map(Arc::new);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    /// A turn of so many values, if there is one now.
    async fn turn(turns: &ValueTurns, values: usize, records: &[usize]) -> Option<ValueTurn> {
        let mut turn = ValueTurn::of(values);
        let there = poll!(pin!(turns.wait(&mut turn, records.iter().copied()))).is_ready();
        there.then_some(turn)
    }

    fn left(turns: &ValueTurns) -> usize {
        turns.0.available_permits()
    }

    #[tokio::test]
    async fn many_large_values_wait_for_each_other_and_small_ones_do_not() {
        let turns = ValueTurns::new();
        let all = left(&turns);
        let large = turn(&turns, 100, &[65 * 1024; 100]).await.unwrap();
        assert_eq!(left(&turns), all - 6_500);
        assert!(turn(&turns, 100, &[65 * 1024; 100]).await.is_none());
        let mut small = Vec::new();
        for _ in 0..64 {
            small.push(turn(&turns, 10, &[200; 10]).await.unwrap());
        }
        assert_eq!(left(&turns), all - 6_500 - 64 * 2);
        drop((large, small));
        assert_eq!(left(&turns), all, "given back");
    }

    #[tokio::test]
    async fn each_alias_counts_and_no_call_wants_more_than_there_is() {
        let turns = ValueTurns::new();
        let all = left(&turns);
        let one = turn(&turns, 100, &[2_048]).await.unwrap();
        assert_eq!(left(&turns), all - 200);
        drop(one);
        assert!(turn(&turns, 1_000, &[65 * 1024]).await.is_some());
        let few = turn(&turns, FEW, &[65 * 1024; FEW]).await.unwrap();
        assert_eq!(left(&turns), all, "few take none");
        assert!(few.held().is_none());
    }
}
