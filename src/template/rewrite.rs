//! Looking through a template's strings and numbers, and putting references or
//! other text in their place.

use std::{convert::Infallible, ops::Range};

use zeroize::Zeroizing;

use super::{
    Format, Location, MAX_TEMPLATE_BYTES, Template,
    json::{self, Decoded, Part, Walker},
    place::Path,
};
use crate::domain::SecretName;

/// A string or number of a template. Text is one string.
pub enum Token<'t> {
    /// What a string means; a lone surrogate reads as U+FFFD.
    String(&'t str),
    /// A number, as it is written.
    Number(&'t str),
}

/// Puts something in place of a part of a token.
pub struct Edit {
    /// The part: bytes of the token's text, not empty.
    pub range: Range<usize>,
    /// What to put there.
    pub with: Replacement,
}

/// What may take the place of a part of a token.
pub enum Replacement {
    /// A reference to this secret.
    Reference(SecretName),
    /// This text, which must hold no reference.
    Text(String),
}

/// Why a template was not rewritten. Never holds a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Edits of one token must ascend, keep apart, cover something and not cut
    /// a character.
    #[error("an edit does not fit its token")]
    Unfit,
    /// The result would be longer than [`MAX_TEMPLATE_BYTES`].
    #[error("must have at most 1,048,576 bytes with references in it")]
    TooLarge,
}

/// A token, its place in the source, and how it is read.
struct Found<'t> {
    range: Range<usize>,
    decoded: Decoded<'t>,
    number: bool,
}

impl Found<'_> {
    fn token(&self) -> Token<'_> {
        let text = self.decoded.text();
        if self.number { Token::Number(text) } else { Token::String(text) }
    }
}

impl Template {
    /// Shows every string, keys too, and every number, in order.
    pub fn tokens(&self, mut visit: impl FnMut(&Location<'_>, Token<'_>)) {
        let Ok(()) = self.each(|location, found| {
            visit(location, found.token());
            Ok::<(), Infallible>(())
        });
    }

    /// Puts references and texts in place of what `edit` tells of each token; all
    /// else stays byte for byte. A number that is edited becomes a string.
    ///
    /// Each new reference renders to its value: backslashes that would escape
    /// it are doubled.
    ///
    /// # Errors
    /// An edit that does not fit, or too long a result.
    pub fn rewrite(
        &self,
        mut edit: impl FnMut(&Location<'_>, Token<'_>) -> Vec<Edit>,
    ) -> Result<Zeroizing<String>, RewriteError> {
        let mut changes: Vec<(Range<usize>, String)> = vec![];
        // Of what is put in alone, so that memory is bounded while they are
        // collected.
        let mut length = 0;
        let backslash = match self.format {
            Format::Text => r"\",
            Format::Json => r"\\",
        };
        self.each(|location, found| {
            let edits = edit(location, found.token());
            let quoted = found.number && !edits.is_empty();
            let Range { start, end } = found.range;
            if quoted {
                changes.push((start..start, "\"".to_owned()));
            }
            let (all, mut cursor, mut done) = (found.decoded.text(), found.decoded.cursor(), 0);
            for Edit { range, with } in edits {
                let before = all.get(done..range.start).ok_or(RewriteError::Unfit)?;
                if all.get(range.clone()).is_none_or(str::is_empty) {
                    return Err(RewriteError::Unfit);
                }
                let escaping = before.len() - before.trim_end_matches('\\').len();
                let text = match with {
                    Replacement::Reference(name) => {
                        format!("{}{{{{secrets.{name}}}}}", backslash.repeat(escaping))
                    }
                    Replacement::Text(text) => self.written(&text),
                };
                length += text.len();
                if length > MAX_TEMPLATE_BYTES {
                    return Err(RewriteError::TooLarge);
                }
                done = range.end;
                let raw = start + cursor.raw(range.start)..start + cursor.raw(range.end);
                changes.push((raw, text));
            }
            if quoted {
                changes.push((end..end, "\"".to_owned()));
            }
            Ok(())
        })?;
        let changes: Vec<_> =
            changes.iter().map(|(range, text)| (range.clone(), &**text)).collect();
        self.replace(&changes, Format::Text, MAX_TEMPLATE_BYTES).ok_or(RewriteError::TooLarge)
    }

    /// Text as it is written in a template of this format.
    fn written(&self, text: &str) -> String {
        match self.format {
            Format::Text => text.to_owned(),
            Format::Json => {
                let mut written = String::with_capacity(json::escaped_length(text));
                json::escape(text, &mut written);
                written
            }
        }
    }

    fn each<E>(
        &self,
        mut visit: impl FnMut(&Location<'_>, Found<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut walker = Walker::new(self.format, &self.source);
        while let Some(part) = walker.next() {
            let (range, number) = match part {
                Part::Open(_) => continue,
                Part::String(range) => (range, false),
                Part::Number(range) => (range, true),
            };
            let path = match self.format {
                Format::Text => Path::None,
                Format::Json => Path::Frames(&walker.frames),
            };
            let location = Location {
                source: &self.source,
                lines: &self.lines,
                path,
                offset: range.start,
                in_key: walker.in_key,
            };
            let decoded =
                Decoded::new(self.format, self.source.get(range.clone()).unwrap_or_default());
            visit(&location, Found { range, decoded, number })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
