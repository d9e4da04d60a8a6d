//! `.env` files.
//!
//! There is no standard, and readers take the same line for different values:
//! whether `$` stands for a variable, where a comment begins, what a backslash
//! does. A secret must not change on its way, and nobody can look at it
//! afterwards. So this takes what all of them read alike, and refuses the rest;
//! it never looks at the environment. (Crates that read such files put variables
//! in place, keep lenient rules, or quote the line in their errors.)
//!
//! ```text
//! # a comment
//! NAME=value          # blanks around it do not count
//! export NAME=value
//! NAME='as it is, $, # and \ too, also
//! over several lines'
//! NAME="with \n \r \t \" \\ \$, also over several lines"
//! ```

use super::document::{Found, lines};

/// Reads the text to its end, past what is wrong.
pub(super) fn parse(text: &str, found: &mut Found) {
    let (mut rest, mut line) = (text, 1);
    while !rest.is_empty() {
        let (statement, used) = statement(rest);
        match statement {
            Ok(Some((name, value))) => found.add(line, name, value, None, None),
            Ok(None) => {}
            Err(rule) => found.fault(line, "", rule),
        }
        let (done, after) = rest.split_at_checked(used).unwrap_or((rest, ""));
        line += lines(done.as_bytes());
        rest = after;
    }
}

/// A name and its value; `None`: nothing stands there.
type Statement<'a> = Result<Option<(&'a str, String)>, &'static str>;

/// What the text begins with, and how many bytes that takes.
fn statement(text: &str) -> (Statement<'_>, usize) {
    let end = text.find('\n').map_or(text.len(), |at| at + 1);
    let head = text.get(..end).unwrap_or(text);
    let line = blank_trimmed(head);
    if line.is_empty() || line.starts_with('#') {
        return (Ok(None), end);
    }
    let Some((name, value)) = head.split_once('=') else {
        return (Err("must be NAME=value, a comment or blank"), end);
    };
    let name = blank_trimmed(name);
    let exported = name.strip_prefix("export").filter(|name| name.starts_with(BLANKS));
    let name = blank_trimmed(exported.unwrap_or(name));
    let value = value.trim_start_matches(BLANKS);
    let Some(quote) = value.chars().next().filter(|c| ['"', '\''].contains(c)) else {
        return (unquoted(value).map(|value| Some((name, value))), end);
    };
    let start = head.len() - value.len() + 1;
    let (value, used) = quoted(text.get(start..).unwrap_or_default(), quote);
    let closed = start + used;
    let after = text.get(closed..).unwrap_or_default();
    let end = after.find('\n').map_or(text.len(), |at| closed + at + 1);
    let after = blank_trimmed(text.get(closed..end).unwrap_or_default());
    let value = match value {
        Ok(_) if !(after.is_empty() || after.starts_with('#')) => {
            Err("has text after the closing quote")
        }
        value => value,
    };
    (value.map(|value| Some((name, value))), end)
}

const BLANKS: [char; 2] = [' ', '\t'];

fn blank_trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\r', '\n'])
}

fn unquoted(text: &str) -> Result<String, &'static str> {
    let comment = text.match_indices('#').map(|(at, _)| at).find(|at| {
        let before = text.get(..*at).unwrap_or_default();
        before.is_empty() || before.ends_with(BLANKS)
    });
    let text = blank_trimmed(text.get(..comment.unwrap_or(text.len())).unwrap_or_default());
    let unclear = |c: char| c.is_control() || ['\'', '"', '`', '\\', '$', '#'].contains(&c);
    // What begins with = is rather the end of base64 than a name and its value.
    if text.starts_with('=') || text.contains(unclear) {
        return Err("must have its value in single quotes: readers disagree about \
                    quotes, \\, $, # and = in it");
    }
    Ok(text.to_owned())
}

/// Reads to the closing quote and past it, also when the value is wrong, so that
/// it is not taken for further lines.
fn quoted(text: &str, quote: char) -> (Result<String, &'static str>, usize) {
    let (mut value, mut fault) = (String::with_capacity(text.find(quote).unwrap_or(0)), None);
    let mut characters = text.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        match c {
            _ if c == quote => return (fault.map_or(Ok(value), Err), at + 1),
            // As all readers do with files of Windows.
            '\r' if matches!(characters.peek(), Some((_, '\n'))) => {}
            '\\' if quote == '"' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, 't')) => value.push('\t'),
                Some((_, c @ ('"' | '\\' | '$'))) => value.push(c),
                _ => {
                    let rule =
                        "has an escape in double quotes other than \\n \\r \\t \\\" \\\\ \\$";
                    fault = fault.or(Some(rule));
                }
            },
            '$' if quote == '"' => {
                let rule = "has $ in double quotes: write \\$, or use single quotes; no \
                            variable is put in";
                fault = fault.or(Some(rule));
            }
            _ => value.push(c),
        }
    }
    (Err("has a quote that is never closed"), text.len())
}
