//! The forms in which a value may stand in text.

#[cfg(test)]
mod tests;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use zeroize::Zeroizing;

use super::Encoding;

/// Shorter values, and shorter lines of a value, are found only on demand:
/// they stand in ordinary text by chance.
pub(super) const SHORT: usize = 8;

/// Base64 of fewer characters says too little to be taken for a value.
const MIN_BASE64: usize = 4;

/// Where `base64`, Python and `openssl` break lines.
const COLUMNS: [usize; 2] = [64, 76];

/// Values that are no secret, in lower case.
const COMMON_WORDS: [&str; 20] = [
    "0.0.0.0",
    "127.0.0.1",
    "changeme",
    "development",
    "disabled",
    "enabled",
    "example",
    "example.com",
    "false",
    "localhost",
    "none",
    "null",
    "password",
    "postgres",
    "production",
    "staging",
    "test",
    "true",
    "undefined",
    "username",
];

/// One way to write a value.
pub(super) struct Form {
    pub(super) encoding: Encoding,
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// It holds less than the value.
    pub(super) part: bool,
}

/// A dialect of percent-encoding.
struct Url {
    /// What stays besides letters and digits.
    kept: &'static [u8],
    /// A blank becomes `+`.
    plus: bool,
}

const URL: [Url; 5] = [
    // encodeURIComponent of JavaScript.
    Url { kept: b"-_.!~*'()", plus: false },
    // RFC 3986: all but the unreserved.
    Url { kept: b"-_.~", plus: false },
    // urllib.parse.quote of Python.
    Url { kept: b"/-_.~", plus: false },
    // Forms, as Python and Go write them.
    Url { kept: b"-_.~", plus: true },
    // Forms, as browsers and Java write them.
    Url { kept: b"*-._", plus: true },
];

/// A dialect of JSON.
struct Json {
    /// Written as `\uXXXX`, besides what must be.
    escaped: &'static str,
    /// So is all that is not ASCII.
    ascii: bool,
    /// `\/` for `/`.
    slash: bool,
    /// Upper-case hex digits.
    upper: bool,
}

const JSON: [Json; 11] = [
    // serde_json, JSON.stringify.
    Json { escaped: "", ascii: false, slash: false, upper: false },
    // Jackson.
    Json { escaped: "", ascii: false, slash: false, upper: true },
    // Python; it escapes DEL too.
    Json { escaped: "\u{7f}", ascii: true, slash: false, upper: false },
    Json { escaped: "", ascii: true, slash: false, upper: false },
    Json { escaped: "", ascii: true, slash: false, upper: true },
    // PHP; the second with JSON_UNESCAPED_UNICODE.
    Json { escaped: "", ascii: true, slash: true, upper: false },
    Json { escaped: "\u{2028}\u{2029}", ascii: false, slash: true, upper: false },
    // Go; the second before 1.22.
    Json { escaped: "<>&\u{2028}\u{2029}", ascii: false, slash: false, upper: false },
    Json { escaped: "<>&\u{2028}\u{2029}\u{8}\u{c}", ascii: false, slash: false, upper: false },
    // Gson.
    Json { escaped: "<>&='\u{2028}\u{2029}", ascii: false, slash: false, upper: false },
    // .NET.
    Json { escaped: "\"'+<>&`\u{7f}", ascii: true, slash: false, upper: true },
];

/// Is it one of the words that are no secret?
pub(super) fn is_common(text: &str) -> bool {
    let text = text.trim();
    COMMON_WORDS.iter().any(|word| word.eq_ignore_ascii_case(text))
}

/// Every form of a value. Lines may come twice.
pub(super) fn forms(value: &str) -> Vec<Form> {
    let mut found = Forms(vec![]);
    found.whole(value, false);
    // Many values end in a line break that their users cut off.
    let cut = value.trim_end_matches(['\n', '\r']);
    if cut.len() >= SHORT && cut.len() < value.len() {
        found.whole(cut, true);
    }
    if value.contains('\n') {
        for line in value.split('\n').map(|line| line.trim_end_matches('\r')) {
            if line.len() >= SHORT && !is_boilerplate(line) {
                found.line(Encoding::Line, line.as_bytes());
            }
        }
    }
    found.0
}

/// A line that says nothing of the value it stands in.
fn is_boilerplate(line: &str) -> bool {
    let line = line.trim();
    let boundary = |start| line.starts_with(start) && line.ends_with("-----");
    let mut others = line.chars().skip_while(|&c| line.starts_with(c));
    boundary("-----BEGIN ")
        || boundary("-----END ")
        || is_common(line)
        // Blanks or a ruler.
        || others.next().is_none()
}

struct Forms(Vec<Form>);

impl Forms {
    fn add(&mut self, encoding: Encoding, bytes: Zeroizing<Vec<u8>>, part: bool) {
        if !self.0.iter().any(|known| *known.bytes == *bytes) {
            self.0.push(Form { encoding, bytes, part });
        }
    }

    /// Unlike [`Self::add`] it does not look for an equal one: there may be
    /// thousands of lines.
    fn line(&mut self, encoding: Encoding, line: &[u8]) {
        self.0.push(Form { encoding, bytes: Zeroizing::new(line.into()), part: true });
    }

    fn whole(&mut self, value: &str, part: bool) {
        let encoding = if part { Encoding::Line } else { Encoding::Raw };
        self.add(encoding, Zeroizing::new(value.into()), part);
        for before in 0..3 {
            self.base64(value, before, part);
        }
        for upper in [false, true] {
            let mut bytes = Zeroizing::new(Vec::with_capacity(2 * value.len()));
            value.bytes().for_each(|byte| hex(byte, upper, &mut bytes));
            self.add(Encoding::Hex, bytes, part);
            for dialect in &URL {
                self.add(Encoding::Url, url(value, dialect, upper), part);
            }
        }
        for dialect in &JSON {
            self.add(Encoding::Json, json(value, dialect), part);
        }
    }

    /// Base64 of a value that `before` bytes (modulo 3) precede: the
    /// characters that the value alone determines, and those to the end if it
    /// ends there. Of a value that nothing precedes, also the lines.
    fn base64(&mut self, value: &str, before: usize, part: bool) {
        let mut data = Zeroizing::new(Vec::with_capacity(before + value.len()));
        data.resize(before, 0);
        data.extend_from_slice(value.as_bytes());
        let first = (8 * before).div_ceil(6);
        let inner = 8 * data.len() / 6;
        let open = Zeroizing::new(STANDARD_NO_PAD.encode(&*data).into_bytes());
        let padded = Zeroizing::new(STANDARD.encode(&*data).into_bytes());
        let texts = [open.get(first..inner), open.get(first..), padded.get(first..)];
        for text in texts.into_iter().flatten().filter(|text| text.len() >= MIN_BASE64) {
            self.add(Encoding::Base64, Zeroizing::new(text.into()), part);
            let mut text = Zeroizing::new(Vec::from(text));
            for byte in text.iter_mut() {
                *byte = match *byte {
                    b'+' => b'-',
                    b'/' => b'_',
                    other => other,
                };
            }
            self.add(Encoding::Base64Url, text, part);
        }
        let lined = open.get(..inner).filter(|_| before == 0).unwrap_or_default();
        for columns in COLUMNS.into_iter().filter(|columns| lined.len() > *columns) {
            // Of as many bytes of the value as a line of its own must have.
            let lines = lined.chunks(columns).filter(|line| line.len() * 6 / 8 >= SHORT);
            lines.for_each(|line| self.line(Encoding::Base64, line));
        }
    }
}

fn hex(byte: u8, upper: bool, to: &mut Vec<u8>) {
    for digit in [byte >> 4, byte & 15] {
        to.push(match digit {
            0..=9 => b'0' + digit,
            _ if upper => b'A' - 10 + digit,
            _ => b'a' - 10 + digit,
        });
    }
}

fn url(value: &str, dialect: &Url, upper: bool) -> Zeroizing<Vec<u8>> {
    // Room for all: growing would leave copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(3 * value.len()));
    for byte in value.bytes() {
        if byte == b' ' && dialect.plus {
            text.push(b'+');
        } else if byte.is_ascii_alphanumeric() || dialect.kept.contains(&byte) {
            text.push(byte);
        } else {
            text.push(b'%');
            hex(byte, upper, &mut text);
        }
    }
    text
}

fn json(value: &str, dialect: &Json) -> Zeroizing<Vec<u8>> {
    // No byte becomes more than six: `\u0000`.
    let mut text = Zeroizing::new(Vec::with_capacity(6 * value.len()));
    for c in value.chars() {
        let short = match c {
            '"' | '\\' => Some(c),
            '/' if dialect.slash => Some(c),
            '\n' => Some('n'),
            '\r' => Some('r'),
            '\t' => Some('t'),
            '\u{8}' => Some('b'),
            '\u{c}' => Some('f'),
            _ => None,
        };
        let foreign = dialect.ascii && !c.is_ascii();
        let must = c < ' ' && short.is_none();
        if foreign || must || dialect.escaped.contains(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                text.extend_from_slice(b"\\u");
                unit.to_be_bytes().into_iter().for_each(|byte| hex(byte, dialect.upper, &mut text));
            }
        } else {
            if short.is_some() {
                text.push(b'\\');
            }
            text.extend_from_slice(short.unwrap_or(c).encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    text
}
