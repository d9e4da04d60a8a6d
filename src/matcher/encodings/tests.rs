use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

use super::super::{
    Encoding,
    tests::{PEM, matcher, of, redact, whole},
};

proptest! {
    #[test]
    fn no_value_survives(
        value in prop_oneof![
            "[A-Za-z0-9_/+=&<>\"'~*!.() \\\\-]{8,60}",
            "\\PC{8,40}",
            "[a-z\u{0}-\u{1f}\u{7f}\u{2028}]{8,40}",
            "[ -~]{1100,1400}",
        ],
        before in "\\PC{0,9}", after in "\\PC{0,9}", cut in 1..90_usize,
    ) {
        let matcher = of(&[&value, "another-value-5Yq"], false);
        for (kind, encoded) in encoded(&value) {
            let text = format!("{before}{encoded}{after}");
            let (out, tally) = redact(&matcher, text.as_bytes(), &[cut]);
            prop_assert!(!contains(&out, encoded.as_bytes()), "{} survives", kind);
            prop_assert!(!tally.is_empty());
        }
        let data = format!("{before}{value}{after}");
        for text in [STANDARD.encode(&data), STANDARD_NO_PAD.encode(&data), URL_SAFE.encode(&data)] {
            // The characters all of whose bits are the value's.
            let (start, end) = (8 * before.len(), 8 * (before.len() + value.len()));
            let inner = &text.as_bytes()[start.div_ceil(6)..end / 6];
            let (out, _) = redact(&matcher, text.as_bytes(), &[cut]);
            prop_assert!(!contains(&out, inner), "base64 survives");
        }
        for columns in [64, 76] {
            // As `base64 <<< value` prints it; the break belongs to the last line.
            let text = STANDARD.encode(format!("{value}\n"));
            let lines: Vec<&str> = text.as_bytes().chunks(columns).map(str_of).collect();
            let (out, _) = redact(&matcher, lines.join("\n").as_bytes(), &[cut]);
            let whole = lines.split_last().map_or(&[][..], |(_, lines)| lines);
            prop_assert!(whole.iter().all(|line| !contains(&out, line.as_bytes())));
        }
    }
}

fn str_of(text: &[u8]) -> &str {
    std::str::from_utf8(text).expect("ASCII")
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The value as others write it.
fn encoded(value: &str) -> Vec<(&'static str, String)> {
    const RFC_3986: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    const COMPONENT: AsciiSet =
        RFC_3986.remove(b'!').remove(b'*').remove(b'\'').remove(b'(').remove(b')');
    const PATH: AsciiSet = RFC_3986.remove(b'/');
    const FORM: AsciiSet = RFC_3986.remove(b' ');
    const WEB_FORM: AsciiSet = FORM.add(b'~').remove(b'*');
    let percent = |set| utf8_percent_encode(value, set).to_string();
    let lower = |text: String| {
        let mut parts = text.split('%');
        let head = parts.next().unwrap_or_default().to_owned();
        parts.fold(head, |text, part| {
            format!("{text}%{}{}", part[..2].to_ascii_lowercase(), &part[2..])
        })
    };
    let json = serde_json::to_string(value).expect("JSON");
    let json = json[1..json.len() - 1].to_owned();
    let unicode = |text: &str, hit: fn(char) -> bool, upper: bool| {
        let mut out = String::new();
        for c in text.chars() {
            if hit(c) {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let hex = format!("{unit:04x}");
                    out += "\\u";
                    out += &if upper { hex.to_uppercase() } else { hex };
                }
            } else {
                out.push(c);
            }
        }
        out
    };
    let go = |c| "<>&\u{2028}\u{2029}".contains(c);
    let foreign = |c: char| !c.is_ascii();
    vec![
        ("raw", value.to_owned()),
        ("hex", hex::encode(value)),
        ("HEX", hex::encode_upper(value)),
        ("RFC 3986", percent(&RFC_3986)),
        ("encodeURIComponent", percent(&COMPONENT)),
        ("quote", percent(&PATH)),
        ("form", percent(&FORM).replace(' ', "+")),
        ("web form", percent(&WEB_FORM).replace(' ', "+")),
        ("lower", lower(percent(&RFC_3986))),
        ("lower component", lower(percent(&COMPONENT))),
        ("lower form", lower(percent(&WEB_FORM)).replace(' ', "+")),
        ("JSON in Python", unicode(&json, |c| !c.is_ascii() || c == '\u{7f}', false)),
        ("JSON in PHP", unicode(&json, foreign, false).replace('/', "\\/")),
        (
            "JSON in PHP, unescaped",
            unicode(&json, |c| ('\u{2028}'..='\u{2029}').contains(&c), false).replace('/', "\\/"),
        ),
        ("JSON in Go", unicode(&json, go, false)),
        ("JSON", json),
    ]
}

#[test]
fn lines_are_found_and_boilerplate_is_not() {
    let matcher = matcher(&[("PEM", PEM)], false).expect("small");
    let crlf = PEM.replace('\n', "\r\n");
    assert_eq!(
        whole(&matcher, &crlf),
        "-----BEGIN PRIVATE KEY-----\r\n{{secrets.PEM}}\r\n{{secrets.PEM}}\r\n\
         {{secrets.PEM}}\r\n-----END PRIVATE KEY-----\r\n"
    );
    assert!(
        matcher.find(crlf.as_bytes()).iter().all(|f| f.partial && f.encoding == Encoding::Line)
    );
    // A line break at the end need not come along.
    assert_eq!(whole(&matcher, &format!("<{}>", PEM.trim_end())), "<{{secrets.PEM}}>");
    assert_eq!(whole(&matcher, &hex::encode(PEM.trim_end())), "{{secrets.PEM}}");
    assert!(matcher.find(PEM.trim_end().as_bytes())[0].partial);
    assert!(!matcher.find(PEM.as_bytes())[0].partial);
}

#[test]
fn each_dialect_is_found_to_the_last_byte() {
    let json = "k\"/<é😀=\u{1b}\u{8}+'~";
    let url = "a b/~*!'(é";
    for (value, text) in [
        (json, r#"k\"/<é😀=\u001b\b+'~"#),
        (json, r#"k\"/<é😀=\u001B\b+'~"#),
        (json, r#"k\"/<\u00e9\ud83d\ude00=\u001b\b+'~"#),
        (json, r#"k\"/<\u00E9\uD83D\uDE00=\u001B\b+'~"#),
        (json, r#"k\"\/<\u00e9\ud83d\ude00=\u001b\b+'~"#),
        (json, r#"k\"\/<é😀=\u001b\b+'~"#),
        (json, r#"k\"/\u003cé😀=\u001b\b+'~"#),
        (json, r#"k\"/\u003cé😀=\u001b\u0008+'~"#),
        (json, r#"k\"/\u003cé😀\u003d\u001b\b+\u0027~"#),
        (json, r#"k\u0022/\u003C\u00E9\uD83D\uDE00=\u001B\b\u002B\u0027~"#),
        ("é\u{7f}\r\n\t/12", r"\u00e9\u007f\r\n\t/12"),
        ("é\u{7f}\r\n\t/12", "\\u00e9\u{7f}\\r\\n\\t/12"),
        (url, "a%20b%2F~*!'(%C3%A9"),
        (url, "a%20b%2F~%2A%21%27%28%C3%A9"),
        (url, "a%20b/~%2A%21%27%28%C3%A9"),
        (url, "a+b%2F~%2A%21%27%28%C3%A9"),
        (url, "a+b%2F%7E*%21%27%28%C3%A9"),
        (url, "a%20b%2f~*!'(%c3%a9"),
        (url, "6120622f7e2a212728c3a9"),
        (url, "6120622F7E2A212728C3A9"),
        (url, "YSBiL34qIScow6k="),
        (url, "YSBiL34qIScow6k"),
        ("???>>>???", "Pz8/Pj4+Pz8/"),
        ("???>>>???", "Pz8_Pj4-Pz8_"),
    ] {
        assert_eq!(whole(&of(&[value], false), text), "{{secrets.V00000}}", "{text}");
    }
}

#[test]
fn lines_that_say_nothing_are_left() {
    let value = "        \n--------\nlocalhost \n-----END X-----\nhunter2-hunter2";
    assert_eq!(
        whole(&of(&[value], false), &value.replace('\n', "\n\n")),
        "        \n\n--------\n\nlocalhost \n\n-----END X-----\n\n{{secrets.V00000}}"
    );
}
