//! Floor 1: text in which values are looked for.
//!
//! A value is found as it is, in base64 (within longer base64 too), in hex,
//! percent-encoded and as part of a JSON string; of a value of several lines,
//! each line is found too.
//!
//! | File | What |
//! |---|---|
//! | `encodings` | the forms of a value |
//! | `table` | all of them in order: which one stands here? |
//! | `anchors` | where it is worth to ask |
//! | `mask` | what is masked, where matches overlap |
//! | `redactor` | a stream of text |
//!
//! The work per byte of text is bounded, whatever the values and the text.

mod anchors;
mod encodings;
mod mask;
mod redactor;
mod table;
#[cfg(test)]
mod tests;

use std::ops::Range;

use self::{
    anchors::{Anchors, Heads},
    encodings::SHORT,
    mask::{Mask, Verdict},
    table::{Builder, Table},
};
use crate::domain::{Plaintext, SecretName};

pub use self::redactor::Redactor;

/// Up to so many places are asked about one by one.
const FEW: usize = 64;

/// How a value is written where it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    /// As it is.
    Raw,
    /// Base64 of the value, or of data that holds it.
    Base64,
    /// The same with `-` and `_`.
    Base64Url,
    /// Hex digits, all lower or all upper case.
    Hex,
    /// Percent-encoded.
    Url,
    /// As in a JSON string.
    Json,
    /// One line of a value of several, or the value without its last line
    /// break.
    Line,
}

/// Why a value is not looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// It has fewer than 8 bytes.
    TooShort,
    /// It is a word that is no secret, such as `localhost`.
    CommonWord,
}

/// All forms of the values together take more than 64 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

/// A value and its name.
pub struct Named<'a> {
    /// Its name.
    pub name: &'a SecretName,
    /// The value.
    pub value: &'a Plaintext,
}

/// What to look for.
#[derive(Debug, Clone, Copy, Default)]
pub struct MatcherOptions {
    /// Also values of fewer than 8 bytes, and words that are no secret.
    pub mask_short: bool,
}

/// A part of a text that a value takes.
#[derive(Debug)]
pub struct Finding<'a> {
    /// Which bytes of the text.
    pub range: Range<usize>,
    /// Whose value.
    pub name: &'a SecretName,
    /// How it is written there.
    pub encoding: Encoding,
    /// There is less than the value (a line or a piece of a long one), or the
    /// finding overlaps others. Base64 counts as whole with the characters
    /// that the value alone determines.
    pub partial: bool,
}

/// A pattern at a place of a text.
struct Match {
    start: u64,
    end: u64,
    pattern: usize,
}

/// Looks for a set of values. It holds them in memory: it cannot be printed
/// or cloned, and is overwritten on drop.
pub struct Matcher {
    /// Sorted, as are the next.
    names: Vec<SecretName>,
    skipped: Vec<(SecretName, Skipped)>,
    table: Table,
    heads: Heads,
    anchors: Vec<Anchors>,
}

impl Matcher {
    /// Prepares to look for some values. Equal ones go by the name that sorts
    /// first. It takes CPU time: about 2 ms for 100 values.
    ///
    /// # Errors
    /// Their forms take too much memory.
    pub fn new<'a>(
        values: impl Iterator<Item = Named<'a>>,
        options: MatcherOptions,
    ) -> Result<Self, TooLarge> {
        let mut values: Vec<_> = values.collect();
        values.sort_by_key(|named| named.name);
        let mut builder = Builder::new();
        let (mut names, mut skipped) = (vec![], vec![]);
        for Named { name, value } in values {
            let value = value.expose();
            let skip = if value.len() < SHORT {
                Some(Skipped::TooShort)
            } else {
                encodings::is_common(value).then_some(Skipped::CommonWord)
            };
            if let Some(reason) = skip.filter(|_| !options.mask_short) {
                skipped.push((name.clone(), reason));
                continue;
            }
            for form in encodings::forms(value) {
                builder.add(names.len(), &form)?;
            }
            names.push(name.clone());
        }
        let table = builder.finish();
        let roots: Vec<&[u8]> = table.roots().collect();
        let heads = Heads::new(roots.iter().copied());
        let anchors = Anchors::of(roots.into_iter());
        Ok(Self { names, skipped, table, heads, anchors })
    }

    /// Whether there is a value of this name, looked for or not.
    pub fn knows(&self, name: &SecretName) -> bool {
        self.names.binary_search(name).is_ok()
            || self.skipped.binary_search_by_key(&name, |(skipped, _)| skipped).is_ok()
    }

    /// The values that are not looked for.
    pub fn skipped(&self) -> &[(SecretName, Skipped)] {
        &self.skipped
    }

    /// Memory it holds, without the names.
    pub fn bytes(&self) -> usize {
        let anchors: usize = self.anchors.iter().map(Anchors::memory).sum();
        self.table.memory() + self.heads.memory() + anchors
    }

    /// What of a text must not be shown; sorted, and none overlaps another.
    pub fn find(&self, text: &[u8]) -> Vec<Finding<'_>> {
        let mut mask = Mask::new();
        let mut found: Vec<Finding> = vec![];
        // Of the last finding, how long it must be to be whole.
        let mut whole = 0;
        for next in self.matches(text, 0..text.len()) {
            let masked = mask.end();
            let verdict = mask.take(&self.table, &next, 0);
            let Some(pattern) = self.table.get(next.pattern) else { continue };
            let [start, end] = [next.start.max(masked), next.end].map(as_usize);
            match (verdict, self.names.get(pattern.name)) {
                (Verdict::Label, Some(name)) => {
                    whole = pattern.whole;
                    let encoding = pattern.encoding;
                    found.push(Finding { range: start..end, name, encoding, partial: true });
                }
                (Verdict::Grown, _) => {
                    if let Some(last) = found.last_mut() {
                        last.range.end = end;
                    }
                }
                _ => {}
            }
            if let Some(last) = found.last_mut() {
                last.partial = last.range.len() != whole;
            }
        }
        found
    }

    /// Of each place in `starts` where a pattern stands, the longest; in order.
    /// Only patterns that `text` holds to their ends are seen.
    fn matches(&self, text: &[u8], starts: Range<usize>) -> Vec<Match> {
        let rest = |start: usize| text.get(start..).unwrap_or_default();
        let likely = |start: &usize| starts.contains(start) && self.heads.may_start(rest(*start));
        let mut places: Vec<usize> = vec![];
        if starts.len() <= FEW {
            places.extend(starts.clone().filter(likely));
        } else {
            for anchors in &self.anchors {
                anchors.places(text, |start| {
                    self.table.count(1);
                    places.extend(Some(start).filter(likely));
                });
            }
            places.sort_unstable();
            places.dedup();
        }
        let found = places.into_iter().filter_map(|start| {
            let pattern = self.table.at_start(rest(start))?;
            let end = start + self.table.get(pattern)?.len();
            Some(Match { start: as_u64(start), end: as_u64(end), pattern })
        });
        found.collect()
    }

    /// The first place of a text from which on it may be the start of a
    /// pattern that goes on: all before it is decided.
    fn decided(&self, text: &[u8]) -> usize {
        let first = (text.len() + 1).saturating_sub(self.table.longest()).min(text.len());
        let open = |at: &usize| {
            let rest = text.get(*at..).unwrap_or_default();
            self.heads.may_start(rest) && self.table.goes_on(rest)
        };
        (first..text.len()).find(open).unwrap_or(text.len())
    }
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn as_usize(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
