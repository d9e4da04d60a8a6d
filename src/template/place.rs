//! Where in a template something stands. Told only when asked: to tell each
//! place of a long template would take far longer than to read it.

use std::{fmt, ops::Range};

use super::json::unit;

/// Longest pointer; what is longer is cut, and ends in `…`.
pub const MAX_POINTER_BYTES: usize = 1_024;

/// A place in a template, for whoever sent the template and nobody else: a
/// pointer is made of the template's keys.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// In text: line and column, both from 1; columns count characters.
    Text {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// In a JSON value: its pointer (RFC 6901). A lone surrogate in a key reads
    /// as U+FFFD.
    Value {
        /// The pointer.
        pointer: String,
    },
    /// In the key of a member: the pointer of that member, with the key as the
    /// template writes it.
    Key {
        /// The pointer.
        pointer: String,
    },
}

/// `line:column`, the pointer, or the pointer followed by ` (key)`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Text { line, column } => write!(f, "{line}:{column}"),
            Place::Value { pointer } => f.write_str(pointer),
            Place::Key { pointer } => write!(f, "{pointer} (key)"),
        }
    }
}

/// One step from a container to what lies in it.
#[derive(Clone)]
pub(super) enum Step {
    /// Element of an array.
    Index(usize),
    /// Member of an object; the range of its raw key in the source.
    Key(Range<usize>),
}

/// A container that is open, and the way further down.
pub(super) struct Frame {
    pub(super) step: Step,
    /// The step's node in [`Paths`], once it was kept.
    pub(super) node: Option<usize>,
}

/// Steps that were kept, each with the one above. Paths share their beginnings,
/// so all of them together take no more room than the template has steps.
#[derive(Default)]
pub(super) struct Paths(Vec<(Option<usize>, Step)>);

impl Paths {
    /// Keeps the path that leads through these frames; its last node.
    pub(super) fn keep(&mut self, frames: &mut [Frame]) -> Option<usize> {
        let mut above = None;
        for frame in frames {
            let node = *frame.node.get_or_insert_with(|| {
                self.0.push((above, frame.step.clone()));
                self.0.len() - 1
            });
            above = Some(node);
        }
        above
    }

    fn steps(&self, mut node: Option<usize>) -> Vec<&Step> {
        let mut steps = vec![];
        while let Some((above, step)) = node.and_then(|node| self.0.get(node)) {
            steps.push(step);
            node = *above;
        }
        steps.reverse();
        steps
    }
}

/// Line and column of every [`Lines::EVERY`]th byte, so that any other is near
/// to one that is known.
#[derive(Default)]
pub(super) struct Lines(Vec<(usize, Position)>);

/// Line and column, from 1.
type Position = (usize, usize);

impl Lines {
    const EVERY: usize = 1024;

    pub(super) fn new(text: &str) -> Self {
        let mut known = vec![(0, (1, 1))];
        let mut last = (0, (1, 1));
        for at in (Self::EVERY..text.len()).step_by(Self::EVERY) {
            let at = text.floor_char_boundary(at);
            last = (at, advance(last.1, text.get(last.0..at).unwrap_or_default()));
            known.push(last);
        }
        Self(known)
    }

    fn position(&self, text: &str, offset: usize) -> Position {
        let (at, known) = self.0.get(offset / Self::EVERY).copied().unwrap_or((0, (1, 1)));
        advance(known, text.get(at..text.floor_char_boundary(offset)).unwrap_or_default())
    }
}

fn advance((line, column): Position, over: &str) -> Position {
    match over.rsplit_once('\n') {
        None => (line, column + over.chars().count()),
        Some((lines, last)) => (line + lines.matches('\n').count() + 1, last.chars().count() + 1),
    }
}

/// Line and column of an offset, for a single time.
pub(super) fn position(text: &str, offset: usize) -> Position {
    advance((1, 1), text.get(..text.floor_char_boundary(offset)).unwrap_or_default())
}

/// A place that is told when asked.
pub struct Location<'t> {
    pub(super) source: &'t str,
    pub(super) lines: &'t Lines,
    pub(super) path: Path<'t>,
    /// Offset in the source.
    pub(super) offset: usize,
    pub(super) in_key: bool,
}

/// How a location knows its path.
pub(super) enum Path<'t> {
    /// Plain text has none.
    None,
    /// By where the walker stands.
    Frames(&'t [Frame]),
    /// By what was kept.
    Kept(&'t Paths, Option<usize>),
}

impl Location<'_> {
    /// Tells locations of one template apart, in its order.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The place.
    pub fn place(&self) -> Place {
        self.place_at(0)
    }

    /// The place of what stands that many bytes into a token. In JSON a string
    /// or number is one place; text has a place for each character.
    pub fn place_at(&self, offset: usize) -> Place {
        let steps = match self.path {
            Path::None => {
                let (line, column) =
                    self.lines.position(self.source, self.offset.saturating_add(offset));
                return Place::Text { line, column };
            }
            Path::Frames(frames) => frames.iter().map(|frame| &frame.step).collect(),
            Path::Kept(paths, node) => paths.steps(node),
        };
        let mut pointer = String::new();
        for step in steps {
            if !self.push(step, &mut pointer) {
                pointer.truncate(pointer.floor_char_boundary(MAX_POINTER_BYTES));
                pointer.push('…');
                break;
            }
        }
        if self.in_key { Place::Key { pointer } } else { Place::Value { pointer } }
    }

    /// Appends a step; false: the pointer is as long as it may get.
    fn push(&self, step: &Step, pointer: &mut String) -> bool {
        pointer.push('/');
        match step {
            Step::Index(index) => pointer.push_str(&index.to_string()),
            Step::Key(raw) => {
                let (raw, mut at) = (self.source.get(raw.clone()).unwrap_or_default(), 0);
                while let Some((c, length)) = unit(raw, at)
                    && pointer.len() <= MAX_POINTER_BYTES
                {
                    match c {
                        '~' => pointer.push_str("~0"),
                        '/' => pointer.push_str("~1"),
                        c => pointer.push(c),
                    }
                    at += length;
                }
            }
        }
        pointer.len() <= MAX_POINTER_BYTES
    }
}
