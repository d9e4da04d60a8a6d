//! What is masked, given all matches of a text in order.

use super::{
    Match,
    table::{Pattern, Table},
};

/// What a match means for the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is masked already.
    Inside,
    /// The mask grows over it; the last label stands for it too.
    Grown,
    /// A label of its own.
    Label,
}

/// The rule: every byte of every match is masked. Where masks overlap, or a
/// piece follows a piece, one label per name in a row stands for all.
///
/// It depends on the text alone, not on how the text arrives.
pub(super) struct Mask {
    /// Where the match starts that it reaches to. All matches before end by
    /// then or within it.
    start: u64,
    /// Where it ends.
    end: u64,
    /// The pattern that it reaches to.
    last: Option<usize>,
}

impl Mask {
    pub(super) fn new() -> Self {
        Self { start: 0, end: 0, last: None }
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Takes the next match, `offset` bytes further into the whole text than
    /// it tells. Of matches at one place, only the longest need come.
    pub(super) fn take(&mut self, table: &Table, found: &Match, offset: u64) -> Verdict {
        let (start, end) = (offset + found.start, offset + found.end);
        if end <= self.end {
            return Verdict::Inside;
        }
        let apart = start >= self.end;
        let goes_on = |(last, next): (&Pattern, &Pattern)| {
            last.name == next.name && (!apart || next.later && start == self.end)
        };
        let last = self.last.and_then(|last| table.get(last));
        let grown = last.zip(table.get(found.pattern)).is_some_and(goes_on);
        (self.start, self.end, self.last) = (start, end, Some(found.pattern));
        if grown { Verdict::Grown } else { Verdict::Label }
    }
}
