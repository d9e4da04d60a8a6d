//! All patterns in order, so that one search tells which stands at a place.

use std::ops::Range;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use zeroize::Zeroizing;

use super::{Encoding, TooLarge, encodings::Form};

/// Longest pattern. What is longer is looked for in pieces: a stream then
/// waits for at most this much, and a great part of a value is found too.
pub(super) const MAX_PIECE: usize = 1_024;

/// Most memory that patterns may take.
pub(super) const MAX_BYTES: usize = 64 * 1024 * 1024;

/// What a pattern takes besides its bytes, about.
const OVERHEAD: usize = 128;

/// Bytes compared at once.
const BLOCK: usize = 32;

/// Bytes to look for: a form of a value, or a piece of one.
pub(super) struct Pattern {
    /// Where in the arena.
    at: Range<usize>,
    /// Whose value, by place among the names.
    pub(super) name: usize,
    pub(super) encoding: Encoding,
    /// Length of the form it is a piece of; 0 if that is not the whole value.
    pub(super) whole: usize,
    /// Another piece precedes it.
    pub(super) later: bool,
    /// The longest pattern that it starts with.
    parent: Option<usize>,
    /// One of the patterns that it starts with, further on: where to look for a
    /// short one, so that a row of them takes few steps.
    jump: Option<usize>,
    /// How many patterns it starts with.
    depth: usize,
}

impl Pattern {
    pub(super) fn len(&self) -> usize {
        self.at.len()
    }
}

/// Collects patterns.
pub(super) struct Builder {
    arena: Zeroizing<Vec<u8>>,
    patterns: Vec<Pattern>,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self { arena: Zeroizing::new(vec![]), patterns: vec![] }
    }

    /// Adds a form of the value of `name`, in pieces of about equal length.
    pub(super) fn add(&mut self, name: usize, form: &Form) -> Result<(), TooLarge> {
        let length = form.bytes.len();
        let count = length.div_ceil(MAX_PIECE);
        if self.arena.len() + length + (self.patterns.len() + count) * OVERHEAD > MAX_BYTES {
            return Err(TooLarge);
        }
        let start = self.arena.len();
        self.room(length);
        self.arena.extend_from_slice(&form.bytes);
        let whole = if form.part { 0 } else { length };
        for piece in 0..count {
            let bound = |piece: usize| start + piece * length / count;
            let (at, later) = (bound(piece)..bound(piece + 1), piece > 0);
            let encoding = form.encoding;
            self.patterns.push(Pattern {
                at,
                name,
                encoding,
                whole,
                later,
                parent: None,
                jump: None,
                depth: 0,
            });
        }
        Ok(())
    }

    /// Grows by hand: the buffer left behind is overwritten.
    fn room(&mut self, more: usize) {
        let needed = self.arena.len() + more;
        if needed > self.arena.capacity() {
            let mut grown = Zeroizing::new(Vec::with_capacity(needed.max(2 * self.arena.len())));
            grown.extend_from_slice(&self.arena);
            self.arena = grown;
        }
    }

    /// Equal patterns become one: the first by encoding, then by name.
    pub(super) fn finish(self) -> Table {
        let Self { arena, mut patterns } = self;
        let bytes = |pattern: &Pattern| arena.get(pattern.at.clone()).unwrap_or_default();
        let rank = |pattern: &Pattern| (pattern.encoding, pattern.name, pattern.later);
        patterns
            .sort_unstable_by(|a, b| bytes(a).cmp(bytes(b)).then_with(|| rank(a).cmp(&rank(b))));
        patterns.dedup_by(|other, kept| {
            let equal = bytes(other) == bytes(kept);
            kept.later |= equal && other.later && other.name == kept.name;
            equal
        });
        let mut starts: Vec<usize> = vec![];
        for index in 0..patterns.len() {
            let text = patterns.get(index).map(bytes).unwrap_or_default();
            let begins = |at: &usize| patterns.get(*at).is_some_and(|p| text.starts_with(bytes(p)));
            while starts.last().is_some_and(|at| !begins(at)) {
                starts.pop();
            }
            let parent = starts.last().copied();
            let jump = parent.map(|parent| jump(&patterns, parent));
            if let Some(pattern) = patterns.get_mut(index) {
                (pattern.parent, pattern.jump, pattern.depth) = (parent, jump, starts.len());
            }
            starts.push(index);
        }
        let longest = patterns.iter().map(Pattern::len).max().unwrap_or(0);
        Table {
            arena,
            patterns,
            longest,
            #[cfg(test)]
            work: AtomicU64::new(0),
        }
    }
}

/// All patterns, sorted, none twice.
pub(super) struct Table {
    arena: Zeroizing<Vec<u8>>,
    patterns: Vec<Pattern>,
    longest: usize,
    /// Work done, in bytes and steps.
    #[cfg(test)]
    pub(super) work: AtomicU64,
}

impl Table {
    pub(super) fn get(&self, index: usize) -> Option<&Pattern> {
        self.patterns.get(index)
    }

    pub(super) fn bytes(&self, pattern: &Pattern) -> &[u8] {
        self.arena.get(pattern.at.clone()).unwrap_or_default()
    }

    /// Length of the longest pattern.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// The patterns that start with no other: whoever finds where one may
    /// stand has found all places to look at.
    pub(super) fn roots(&self) -> impl Iterator<Item = &[u8]> {
        self.patterns.iter().filter(|p| p.parent.is_none()).map(|p| self.bytes(p))
    }

    #[cfg(test)]
    pub(super) fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Memory it holds.
    pub(super) fn memory(&self) -> usize {
        self.arena.capacity() + self.patterns.capacity() * size_of::<Pattern>()
    }

    /// The longest pattern that `text` starts with.
    pub(super) fn at_start(&self, text: &[u8]) -> Option<usize> {
        let (after, common) = self.search(text);
        // Whatever `text` starts with, the last pattern not after it does too.
        let mut found = after.checked_sub(1);
        loop {
            let index = found?;
            let pattern = self.patterns.get(index)?;
            self.count(1);
            if pattern.len() <= common {
                return Some(index);
            }
            let far = pattern.jump.filter(|far| self.get(*far).is_some_and(|p| p.len() > common));
            found = far.or(pattern.parent);
        }
    }

    /// Does a pattern start with `text`, and go on?
    pub(super) fn goes_on(&self, text: &[u8]) -> bool {
        let (after, _) = self.search(text);
        let next = self.patterns.get(after);
        self.count(text.len());
        next.is_some_and(|pattern| self.bytes(pattern).starts_with(text))
    }

    /// How many patterns are not after `text`, and how many bytes it has in
    /// common with the last of them.
    fn search(&self, text: &[u8]) -> (usize, usize) {
        let (mut low, mut high) = (0, self.patterns.len());
        // What lies between two texts has in common what they have.
        let (mut common_low, mut common_high) = (0, 0);
        while low < high {
            let middle = low.midpoint(high);
            let pattern = self.patterns.get(middle).map(|p| self.bytes(p)).unwrap_or_default();
            let known = common_low.min(common_high);
            let rest = pattern.get(known..).unwrap_or_default();
            let common = known + common(rest, text.get(known..).unwrap_or_default());
            self.count(common - known + 1);
            let after = match (pattern.get(common), text.get(common)) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(a), Some(b)) => a > b,
            };
            if after {
                (high, common_high) = (middle, common);
            } else {
                (low, common_low) = (middle + 1, common);
            }
        }
        (low, common_low)
    }

    /// Counts work, so that tests can hold its bound.
    #[cfg(test)]
    pub(super) fn count(&self, work: usize) {
        self.work.fetch_add(work.try_into().unwrap(), Relaxed);
    }

    #[cfg(not(test))]
    pub(super) fn count(&self, _: usize) {}
}

/// Where a pattern with this parent jumps to: over as many patterns as two
/// jumps from there on, if these are equally long, or else to the parent. So
/// each is reached in about log steps (Myers, applicative random-access stack).
fn jump(patterns: &[Pattern], parent: usize) -> usize {
    let depth = |at: Option<usize>| at.and_then(|at| patterns.get(at)).map_or(0, |p| p.depth);
    let next = |at: Option<usize>| patterns.get(at?)?.jump;
    let (first, second) = (next(Some(parent)), next(next(Some(parent))));
    match (first, second) {
        (Some(_), Some(second))
            if depth(Some(parent)) - depth(first) == depth(first) - depth(Some(second)) =>
        {
            second
        }
        _ => parent,
    }
}

/// How many bytes two texts start with in common.
fn common(a: &[u8], b: &[u8]) -> usize {
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK));
    let equal = BLOCK * blocks.take_while(|(a, b)| a == b).count();
    let (a, b) = (a.get(equal..).unwrap_or_default(), b.get(equal..).unwrap_or_default());
    equal + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
