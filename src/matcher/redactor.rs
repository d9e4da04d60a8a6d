//! A stream of text without the values in it.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use zeroize::Zeroizing;

use super::{
    Encoding, Matcher, as_u64, as_usize,
    mask::{Mask, Verdict},
};
use crate::domain::SecretName;

/// Text is worked on in slices of at most this length.
pub(super) const SLICE: usize = 16 * 1024;

/// Replaces values in one stream of text by `{{secrets.NAME}}`.
///
/// The output is the same however the text is cut into chunks. It is held
/// back only where the text so far ends in what may be the start of a value,
/// and never by more than 1 KiB. It holds text in memory: it cannot be
/// printed or cloned, and is overwritten on drop.
pub struct Redactor {
    matcher: Arc<Matcher>,
    /// Text not yet decided on. Never grows: growing would leave copies behind.
    held: Zeroizing<Vec<u8>>,
    /// How much text precedes `held`.
    before: u64,
    mask: Mask,
    /// Labels written, by the name's place and encoding.
    tally: BTreeMap<(usize, Encoding), u64>,
}

impl Redactor {
    /// At the start of a text.
    pub fn new(matcher: Arc<Matcher>) -> Self {
        let held = Zeroizing::new(Vec::with_capacity(SLICE + matcher.table.longest()));
        Self { matcher, held, before: 0, mask: Mask::new(), tally: BTreeMap::new() }
    }

    /// Takes more text; appends to `out` what it may.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) {
        for slice in chunk.chunks(SLICE) {
            self.held.extend_from_slice(slice);
            let decided = self.matcher.decided(&self.held);
            self.advance(decided, out);
        }
    }

    /// The text has ended; appends the rest to `out`.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.advance(self.held.len(), out);
    }

    /// How many labels were written, by name and encoding.
    pub fn tally(&self) -> impl Iterator<Item = (&SecretName, Encoding, u64)> {
        let names = &self.matcher.names;
        self.tally.iter().filter_map(|((name, encoding), count)| {
            names.get(*name).map(|name| (name, *encoding, *count))
        })
    }

    /// How many bytes of text the output stands for; all but the last 2 KiB at
    /// most. Whoever redacts the text from there on in a new stream misses no
    /// value; a label at that place may come twice.
    pub fn consumed(&self) -> u64 {
        if self.mask.end() > self.before { self.mask.start() } else { self.before }
    }

    /// Writes out all matches that start before `decided`, and the text
    /// between them.
    fn advance(&mut self, decided: usize, out: &mut Vec<u8>) {
        if decided == 0 {
            return;
        }
        let Self { matcher, held, before, mask, tally } = self;
        for found in matcher.matches(held, 0..decided) {
            let done = done(mask, *before);
            let verdict = mask.take(&matcher.table, &found, *before);
            copy(held, done..found.start, out);
            if verdict == Verdict::Label
                && let Some(pattern) = matcher.table.get(found.pattern)
                && let Some(name) = matcher.names.get(pattern.name)
            {
                out.extend_from_slice(b"{{secrets.");
                out.extend_from_slice(name.as_str().as_bytes());
                out.extend_from_slice(b"}}");
                *tally.entry((pattern.name, pattern.encoding)).or_default() += 1;
            }
        }
        copy(held, done(mask, *before)..as_u64(decided), out);
        held.drain(..decided);
        *before += as_u64(decided);
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.held.len(), self.held.capacity())
    }
}

/// Up to where in the held text all is written out or masked.
fn done(mask: &Mask, before: u64) -> u64 {
    mask.end().saturating_sub(before)
}

/// Copies a part of the text, if it is not masked already.
fn copy(held: &[u8], part: Range<u64>, out: &mut Vec<u8>) {
    let [start, end] = [part.start, part.end].map(as_usize);
    out.extend_from_slice(held.get(start..end).unwrap_or_default());
}
