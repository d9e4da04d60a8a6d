//! Floor 1: references to secrets in text and in JSON.
//!
//! A *reference* is `{{`, blanks, `secrets.NAME`, blanks, `}}`, where blanks
//! are spaces and tabs and NAME is a [`SecretName`]. It is found wherever it
//! stands, between other braces too; of `{{{secrets.A}}}` the innermost braces
//! count, so the value comes out between `{` and `}`.
//!
//! - What begins like a reference - `{{`, blanks, `secrets`, and then the end or
//!   anything but `A-Z a-z 0-9 _` - and is none, is *malformed*: `{{secrets}}`,
//!   `{{secrets.A.b}}`, `{{secrets["A"]}}`, `{{secrets.__proto__}}`. It is
//!   reported, and a template that has one does not render. It reaches to the
//!   end of the word `secrets`; what follows is looked at in its own right.
//! - A backslash directly before such a `{{` makes it literal text:
//!   `\{{secrets.A}}` renders as `{{secrets.A}}`. Of a run of n backslashes
//!   there, n/2 (rounded down) come out, and it is escaped if n is odd. What
//!   follows an escaped `{{secrets` is looked at in its own right.
//! - Everything else stays byte for byte: other backslashes, and whatever else
//!   stands in braces, such as `{{ $json.id }}`, `{{secretsmanager.x}}` or
//!   `{{ "a" + secrets.A }}`.
//! - Substituted text is never looked at again.
//!
//! In JSON, references are looked for in what strings mean, so `{` may be
//! written `\u007b`, and the backslash that escapes is written `\\`. Strings are
//! values and keys of objects. Only the range that a reference covers changes:
//! blanks, order, double keys, the spelling of numbers and all other escapes
//! stay byte for byte, lone surrogates too. The result is JSON whatever the
//! values are; keys may then be double.

mod json;
mod place;
mod rewrite;
mod scan;

use std::{collections::BTreeSet, ops::Range};

use zeroize::Zeroizing;

use self::{
    json::{Decoded, Part, Walker},
    place::{Lines, Path, Paths},
    scan::{Kind, Scanner},
};
use crate::domain::{Plaintext, SecretName};

pub use self::{
    place::{Location, MAX_POINTER_BYTES, Place},
    rewrite::{Edit, Replacement, RewriteError, Token},
};

/// Longest template, in bytes.
pub const MAX_TEMPLATE_BYTES: usize = 1024 * 1024;
/// How deep arrays and objects of a JSON template may be nested.
pub const MAX_NESTING: usize = 128;
/// Longest rendered template, in bytes.
pub const MAX_RENDERED_BYTES: usize = 4 * 1024 * 1024;

/// The references in what a string means.
pub fn references_in(text: &str) -> impl Iterator<Item = (Range<usize>, SecretName)> {
    Scanner::new(text).filter_map(|found| match found.kind {
        Kind::Reference(name) => Some((found.opening..found.range.end, name)),
        Kind::Malformed | Kind::Escaped => None,
    })
}

/// How a template is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON (RFC 8259), without a byte-order mark.
    Json,
    /// Any text.
    Text,
}

/// Why a template was refused. Never holds a part of it. Lines and columns
/// count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Longer than [`MAX_TEMPLATE_BYTES`].
    #[error("must have at most 1,048,576 bytes")]
    TooLarge,
    /// Not JSON.
    #[error("is not valid JSON at line {line}, column {column}")]
    InvalidJson {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// Nested deeper than [`MAX_NESTING`]; the place of the first that is.
    #[error("is nested deeper than 128 levels at line {line}, column {column}")]
    TooDeep {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
}

/// Why a template was not rendered. Never holds a part of it or a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// It has malformed references.
    #[error("has malformed references")]
    Malformed,
    /// There is no value for this name.
    #[error("there is no value for {0}")]
    Missing(SecretName),
    /// The result would be longer than [`MAX_RENDERED_BYTES`].
    #[error("must render to at most 4,194,304 bytes")]
    TooLarge,
}

/// A text or JSON document and the references in it.
///
/// A template may hold pasted secrets: it cannot be printed, cloned or
/// serialized, and is overwritten on drop.
pub struct Template {
    source: Zeroizing<String>,
    format: Format,
    pieces: Vec<Piece>,
    malformed: Vec<Mark>,
    lines: Lines,
    paths: Paths,
}

/// A range of the source that rendering replaces: by a value, or by nothing
/// where it is backslashes that escape.
struct Piece {
    range: Range<usize>,
    reference: Option<(SecretName, Mark)>,
}

/// What is kept of a place.
struct Mark {
    offset: usize,
    node: Option<usize>,
    in_key: bool,
}

/// A reference in a template.
pub struct Reference<'t> {
    /// The secret's name.
    pub name: &'t SecretName,
    /// Where it stands.
    pub location: Location<'t>,
}

impl Template {
    /// Takes a template over, without a copy, in time and memory linear in its
    /// length.
    ///
    /// # Errors
    /// Too long, or no JSON of allowed depth though it should be. The text is
    /// overwritten.
    pub fn parse(format: Format, source: String) -> Result<Self, ParseError> {
        let source = Zeroizing::new(source);
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(ParseError::TooLarge);
        }
        let lines = match format {
            Format::Text => Lines::new(&source),
            Format::Json => Lines::default(),
        };
        if format == Format::Json
            && let Err(offset) = json::validate(&source)
        {
            let (line, column) = place::position(&source, offset);
            return Err(ParseError::InvalidJson { line, column });
        }
        let (mut pieces, mut malformed, mut paths) = (vec![], vec![], Paths::default());
        let mut walker = Walker::new(format, &source);
        while let Some(part) = walker.next() {
            let string = match part {
                Part::Open(offset) if walker.frames.len() > MAX_NESTING => {
                    let (line, column) = place::position(&source, offset);
                    return Err(ParseError::TooDeep { line, column });
                }
                Part::Open(_) | Part::Number(_) => continue,
                Part::String(range) => range,
            };
            let raw = source.get(string.clone()).unwrap_or_default();
            let decoded = Decoded::new(format, raw);
            let mut cursor = decoded.cursor();
            for found in Scanner::new(decoded.text()) {
                let start = string.start + cursor.raw(found.range.start);
                let offset = string.start + cursor.raw(found.opening);
                let range = start..string.start + cursor.raw(found.range.end);
                let mut mark =
                    || Mark { offset, node: paths.keep(&mut walker.frames), in_key: walker.in_key };
                match found.kind {
                    Kind::Reference(name) => {
                        pieces.push(Piece { range, reference: Some((name, mark())) });
                    }
                    Kind::Escaped => pieces.push(Piece { range, reference: None }),
                    Kind::Malformed => malformed.push(mark()),
                }
            }
        }
        Ok(Self { source, format, pieces, malformed, lines, paths })
    }

    /// The references, in order.
    pub fn references(&self) -> impl Iterator<Item = Reference<'_>> {
        let known = self.pieces.iter().filter_map(|piece| piece.reference.as_ref());
        known.map(|(name, mark)| Reference { name, location: self.location(mark) })
    }

    /// The malformed references, in order.
    pub fn malformed(&self) -> impl ExactSizeIterator<Item = Location<'_>> {
        self.malformed.iter().map(|mark| self.location(mark))
    }

    /// The names that are referred to.
    pub fn names(&self) -> BTreeSet<&SecretName> {
        self.references().map(|reference| reference.name).collect()
    }

    /// Puts the values in, in one allocation of the exact length: no copy of a
    /// value is left behind.
    ///
    /// # Errors
    /// A malformed reference, a name without a value, or too long a result.
    pub fn render<'v>(
        &self,
        value: impl Fn(&SecretName) -> Option<&'v Plaintext>,
    ) -> Result<Zeroizing<String>, RenderError> {
        if !self.malformed.is_empty() {
            return Err(RenderError::Malformed);
        }
        // Values are asked for once, so that length and content agree.
        let mut changes = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let text = match &piece.reference {
                None => "",
                Some((name, _)) => {
                    value(name).ok_or_else(|| RenderError::Missing(name.clone()))?.expose()
                }
            };
            changes.push((piece.range.clone(), text));
        }
        self.replace(&changes, self.format, MAX_RENDERED_BYTES).ok_or(RenderError::TooLarge)
    }

    /// The source with these ranges replaced, which ascend and keep apart: by
    /// text as it is, or written as the inside of a JSON string. `None` if it
    /// would be longer than `max`.
    fn replace(
        &self,
        changes: &[(Range<usize>, &str)],
        written: Format,
        max: usize,
    ) -> Option<Zeroizing<String>> {
        let mut length = self.source.len();
        for (range, _) in changes {
            length -= range.len();
        }
        for (_, text) in changes {
            length += match written {
                Format::Text => text.len(),
                Format::Json => json::escaped_length(text),
            };
            // Ends the work too: the sum may be far more than `max`.
            if length > max {
                return None;
            }
        }
        let mut result = Zeroizing::new(String::with_capacity(length));
        let mut at = 0;
        for (range, text) in changes {
            result.push_str(self.source.get(at..range.start).unwrap_or_default());
            match written {
                Format::Text => result.push_str(text),
                Format::Json => json::escape(text, &mut result),
            }
            at = range.end;
        }
        result.push_str(self.source.get(at..).unwrap_or_default());
        Some(result)
    }

    fn location(&self, mark: &Mark) -> Location<'_> {
        let path = match self.format {
            Format::Text => Path::None,
            Format::Json => Path::Kept(&self.paths, mark.node),
        };
        Location {
            source: &self.source,
            lines: &self.lines,
            path,
            offset: mark.offset,
            in_key: mark.in_key,
        }
    }
}

#[cfg(test)]
mod tests;
