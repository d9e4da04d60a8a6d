//! JSON as text: what it consists of, without building values. But for
//! [`validate`] everything here reads JSON that is known to be valid.

use std::ops::Range;

use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::{
    Format,
    place::{Frame, Step},
};

/// Whether a text is JSON (RFC 8259); of any depth, for serde_json's limit on
/// recursion does not hold where it ignores values. Lone surrogates may be
/// written as escapes. The error is the byte offset behind which it lies.
pub(super) fn validate(source: &str) -> Result<(), usize> {
    serde_json::from_str::<IgnoredAny>(source).map(drop).map_err(|error| {
        let line = error.line().saturating_sub(1);
        let starts = source.match_indices('\n').map(|(at, _)| at + 1);
        let start = std::iter::once(0).chain(starts).nth(line).unwrap_or_default();
        (start + error.column().saturating_sub(1)).min(source.len())
    })
}

/// What the walker comes past.
pub(super) enum Part {
    /// `[` or `{`, at this offset.
    Open(usize),
    /// A string, without its quotes. Of plain text: all of it.
    String(Range<usize>),
    /// A number.
    Number(Range<usize>),
}

/// Goes through a template once, part by part, and knows where it is.
pub(super) struct Walker<'s> {
    source: &'s str,
    format: Format,
    at: usize,
    pub(super) frames: Vec<Frame>,
    /// The last part was an object's key.
    pub(super) in_key: bool,
    key_follows: bool,
}

impl<'s> Walker<'s> {
    pub(super) fn new(format: Format, source: &'s str) -> Self {
        Self { source, format, at: 0, frames: vec![], in_key: false, key_follows: false }
    }

    fn open(&mut self, object: bool) -> Part {
        let step = if object { Step::Key(0..0) } else { Step::Index(0) };
        self.frames.push(Frame { step, node: None });
        self.key_follows = object;
        self.at += 1;
        Part::Open(self.at - 1)
    }

    /// Behind a comma: the next member or element.
    fn comma(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.node = None;
            match &mut frame.step {
                Step::Index(index) => *index += 1,
                Step::Key(_) => self.key_follows = true,
            }
        }
    }

    fn string(&mut self) -> Part {
        let start = self.at + 1;
        let mut end = start;
        let bytes = self.source.as_bytes();
        while let Some(&byte) = bytes.get(end).filter(|&&byte| byte != b'"') {
            end += if byte == b'\\' { 2 } else { 1 };
        }
        self.at = end + 1;
        self.in_key = std::mem::take(&mut self.key_follows);
        if let Some(frame) = self.frames.last_mut().filter(|_| self.in_key) {
            frame.step = Step::Key(start..end);
        }
        Part::String(start..end)
    }

    fn number(&mut self) -> Part {
        let belongs = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
        let start = self.at;
        while self.source.as_bytes().get(self.at).is_some_and(belongs) {
            self.at += 1;
        }
        self.in_key = false;
        Part::Number(start..self.at)
    }
}

impl Iterator for Walker<'_> {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.format == Format::Text {
            let rest = std::mem::replace(&mut self.at, usize::MAX);
            return (rest == 0).then_some(Part::String(0..self.source.len()));
        }
        loop {
            match *self.source.as_bytes().get(self.at)? {
                b'[' => return Some(self.open(false)),
                b'{' => return Some(self.open(true)),
                b'"' => return Some(self.string()),
                b'-' | b'0'..=b'9' => return Some(self.number()),
                b']' | b'}' => {
                    self.frames.pop();
                    self.key_follows = false;
                }
                b',' => self.comma(),
                // Blanks, colons, `true`, `false`, `null`.
                _ => {}
            }
            self.at += 1;
        }
    }
}

/// The character that a string's raw text has there, and its raw length. A lone
/// surrogate reads as U+FFFD.
pub(super) fn unit(raw: &str, at: usize) -> Option<(char, usize)> {
    let rest = raw.get(at..)?;
    let mut chars = rest.chars();
    let first = chars.next()?;
    if first != '\\' {
        return Some((first, first.len_utf8()));
    }
    let simple = |c| Some((c, 2));
    match chars.next()? {
        'b' => simple('\u{8}'),
        'f' => simple('\u{c}'),
        'n' => simple('\n'),
        'r' => simple('\r'),
        't' => simple('\t'),
        'u' => {
            let high = hex(rest, 2)?;
            let low = || rest.get(6..8).filter(|mark| *mark == "\\u").and_then(|_| hex(rest, 8));
            let pair = [high, low().unwrap_or_default()];
            match char::decode_utf16(pair).next()? {
                Ok(c) if c.len_utf16() == 2 => Some((c, 12)),
                Ok(c) => Some((c, 6)),
                Err(_) => Some((char::REPLACEMENT_CHARACTER, 6)),
            }
        }
        c => simple(c),
    }
}

fn hex(text: &str, at: usize) -> Option<u16> {
    u16::from_str_radix(text.get(at..at + 4)?, 16).ok()
}

/// What a string means.
pub(super) struct Decoded<'s> {
    raw: &'s str,
    /// Only where it differs from the raw text.
    own: Option<Zeroizing<String>>,
}

impl<'s> Decoded<'s> {
    pub(super) fn new(format: Format, raw: &'s str) -> Self {
        let own = (format == Format::Json && raw.contains('\\')).then(|| {
            // No character takes more bytes decoded than raw, so this never moves.
            let mut text = Zeroizing::new(String::with_capacity(raw.len()));
            let mut rest = raw;
            while let Some((plain, _)) = rest.split_once('\\') {
                text.push_str(plain);
                let Some((c, length)) = unit(rest, plain.len()) else { break };
                text.push(c);
                rest = rest.get(plain.len() + length..).unwrap_or_default();
            }
            text.push_str(rest);
            text
        });
        Self { raw, own }
    }

    pub(super) fn text(&self) -> &str {
        self.own.as_deref().map_or(self.raw, String::as_str)
    }

    /// Leads from offsets in the decoded text to those in the raw one.
    pub(super) fn cursor(&self) -> Cursor<'s> {
        Cursor { raw: self.raw, same: self.own.is_none(), at: 0, decoded: 0 }
    }
}

/// Maps ascending offsets; all of them together cost one pass.
pub(super) struct Cursor<'s> {
    raw: &'s str,
    same: bool,
    at: usize,
    decoded: usize,
}

impl Cursor<'_> {
    /// The raw offset of a decoded one, not less than the last.
    pub(super) fn raw(&mut self, decoded: usize) -> usize {
        if self.same {
            return decoded;
        }
        while self.decoded < decoded
            && let Some((c, length)) = unit(self.raw, self.at)
        {
            self.decoded += c.len_utf8();
            self.at += length;
        }
        self.at
    }
}

/// How a byte is written inside a string: itself, or an escape.
enum Spelling {
    Plain,
    Short(char),
    Hex,
}

fn spelling(byte: u8) -> Spelling {
    match byte {
        b'"' | b'\\' => Spelling::Short(char::from(byte)),
        0x08 => Spelling::Short('b'),
        0x0c => Spelling::Short('f'),
        b'\n' => Spelling::Short('n'),
        b'\r' => Spelling::Short('r'),
        b'\t' => Spelling::Short('t'),
        0..=0x1f => Spelling::Hex,
        _ => Spelling::Plain,
    }
}

/// How many bytes [`escape`] writes.
pub(super) fn escaped_length(text: &str) -> usize {
    let length = |byte| match spelling(byte) {
        Spelling::Plain => 1,
        Spelling::Short(_) => 2,
        Spelling::Hex => 6,
    };
    text.bytes().map(length).sum()
}

/// Writes a text as the inside of a string.
pub(super) fn escape(text: &str, into: &mut String) {
    let mut rest = text;
    // What is escaped is ASCII, so a cut never splits a character.
    while let Some(at) = rest.bytes().position(|byte| !matches!(spelling(byte), Spelling::Plain)) {
        let (plain, from) = rest.split_at_checked(at).unwrap_or_default();
        into.push_str(plain);
        let byte = from.bytes().next().unwrap_or_default();
        match spelling(byte) {
            Spelling::Short(c) => into.extend(['\\', c]),
            // Only control characters: below 0x20.
            _ => {
                into.push_str(if byte < 0x10 { "\\u000" } else { "\\u001" });
                into.extend(char::from_digit(u32::from(byte & 0xf), 16));
            }
        }
        rest = from.get(1..).unwrap_or_default();
    }
    into.push_str(rest);
}
