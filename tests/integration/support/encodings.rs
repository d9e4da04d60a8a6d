//! A value as other programs write it, by other means than the service's own.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Not escaped by RFC 3986, `encodeURIComponent`, Python's `quote`, and forms.
const RFC_3986: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const COMPONENT: AsciiSet =
    RFC_3986.remove(b'!').remove(b'*').remove(b'\'').remove(b'(').remove(b')');
const PATH: AsciiSet = RFC_3986.remove(b'/');
const FORM: AsciiSet = RFC_3986.remove(b' ');
const WEB_FORM: AsciiSet = FORM.add(b'~').remove(b'*');

/// A value written somewhere, and what of it must not come out.
pub(crate) struct Written {
    pub(crate) what: String,
    pub(crate) text: String,
    pub(crate) secret: String,
}

/// Every listed encoding of a value, by itself and inside of more.
pub(crate) fn written(value: &str) -> Vec<Written> {
    let mut all = vec![];
    let mut note = |what: &str, text: String| {
        all.push(Written { what: what.to_owned(), secret: text.clone(), text });
    };
    note("raw", value.to_owned());
    note("hex", hex::encode(value));
    note("HEX", hex::encode_upper(value));
    let percent = [
        ("RFC 3986", &RFC_3986),
        ("component", &COMPONENT),
        ("path", &PATH),
        ("form", &FORM),
        ("web form", &WEB_FORM),
    ];
    for (what, set) in percent {
        let text = utf8_percent_encode(value, set).to_string();
        let text = if what.contains("form") { text.replace(' ', "+") } else { text };
        note(what, lower(&text));
        note(what, text);
    }
    for (what, text) in json(value) {
        note(what, text);
    }
    // Each line, but for rulers.
    for line in value.split('\n').map(|line| line.trim_end_matches('\r')) {
        let ruler = line.chars().all(|c| line.starts_with(c));
        if line.len() >= 8 && line != value && !ruler {
            note("line", line.to_owned());
        }
    }
    note("lines", value.replace('\n', "\r\n"));
    for before in 0..4 {
        for after in 0..4 {
            all.extend(base64(value, &"<.>:"[..before], &"!end"[..after]));
        }
    }
    for user in ["", "u", "me", "api", "user@example.com"] {
        let text = STANDARD.encode(format!("{user}:{value}"));
        let secret = inner(&text, user.len() + 1, value.len());
        all.push(Written { what: "Basic".to_owned(), text: format!("Basic {text}"), secret });
    }
    all
}

/// The inside of a JSON string, as several libraries write it.
fn json(value: &str) -> Vec<(&'static str, String)> {
    let json = serde_json::to_string(value).unwrap();
    let json = json[1..json.len() - 1].to_owned();
    let unicode = |text: &str, hit: fn(char) -> bool, upper: bool| {
        let unit = |unit: &u16| match upper {
            true => format!("\\u{unit:04X}"),
            false => format!("\\u{unit:04x}"),
        };
        let write = |c: char| match hit(c) {
            true => c.encode_utf16(&mut [0; 2]).iter().map(unit).collect(),
            false => c.to_string(),
        };
        text.chars().map(write).collect::<String>()
    };
    let foreign = |c: char| !c.is_ascii();
    vec![
        ("JSON in Python", unicode(&json, |c| !c.is_ascii() || c == '\u{7f}', false)),
        ("JSON, ASCII", unicode(&json, foreign, false)),
        ("JSON in PHP", unicode(&json, foreign, false).replace('/', "\\/")),
        ("JSON in Go", unicode(&json, |c| "<>&\u{2028}\u{2029}".contains(c), false)),
        ("JSON", json),
    ]
}

/// Base64 of a value between other bytes.
fn base64(value: &str, before: &str, after: &str) -> Vec<Written> {
    let data = format!("{before}{value}{after}");
    let written = |what: &str, text: String| {
        let what = format!("{what} between {} and {}", before.len(), after.len());
        let secret = inner(&text, before.len(), value.len());
        Written { what, text, secret }
    };
    vec![
        written("base64", STANDARD.encode(&data)),
        written("base64, no padding", STANDARD_NO_PAD.encode(&data)),
        written("base64url", URL_SAFE.encode(&data)),
        written("base64url, no padding", URL_SAFE_NO_PAD.encode(&data)),
    ]
}

/// The characters of base64 all of whose bits are the value's.
fn inner(text: &str, before: usize, length: usize) -> String {
    text[(8 * before).div_ceil(6)..8 * (before + length) / 6].to_owned()
}

/// Percent-encoding with lower-case digits.
fn lower(text: &str) -> String {
    let mut parts = text.split('%');
    let head = parts.next().unwrap().to_owned();
    parts
        .fold(head, |text, part| format!("{text}%{}{}", part[..2].to_ascii_lowercase(), &part[2..]))
}
