//! Finds secrets in whatever a program leaves behind, in every form in which
//! they are likely to get there.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

/// Secrets to look for.
pub(crate) struct Needles(Vec<(String, String)>);

impl Needles {
    /// `secrets` by name; each has at least 16 bytes.
    pub(crate) fn new<'a>(secrets: impl IntoIterator<Item = (&'static str, &'a [u8])>) -> Self {
        let mut needles = vec![];
        for (name, secret) in secrets {
            assert!(secret.len() >= 16, "too short to tell from chance");
            for (form, bytes) in forms(secret) {
                needles.push((format!("{name}, {form}"), latin1(&bytes)));
            }
        }
        Self(needles)
    }

    /// What is found, by name and form.
    pub(crate) fn found_in(&self, haystack: &[u8]) -> Vec<&str> {
        let haystack = latin1(haystack);
        let found = self.0.iter().filter(|(_, needle)| haystack.contains(needle.as_str()));
        found.map(|(what, _)| what.as_str()).collect()
    }

    /// Asserts that nothing is found in any of the places, by name.
    pub(crate) fn assert_absent(&self, places: &[(String, Vec<u8>)]) {
        let mut found = vec![];
        for (place, content) in places {
            assert!(!content.is_empty(), "{place}: nothing to search");
            found.extend(self.found_in(content).into_iter().map(|what| format!("{place}: {what}")));
        }
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// A character per byte: `str` has a fast search, slices have none.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// A secret as it is, and as programs write it.
pub(crate) fn forms(secret: &[u8]) -> Vec<(String, Vec<u8>)> {
    let each = |write: &dyn Fn(u8) -> String| -> Vec<u8> {
        secret.iter().copied().map(write).collect::<String>().into_bytes()
    };
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let plain = |b: u8| char::from(b).to_string();
    let decimals: Vec<_> = secret.iter().map(u8::to_string).collect();
    let mut forms = vec![
        ("raw".to_owned(), secret.to_vec()),
        ("hex".to_owned(), hex::encode(secret).into_bytes()),
        ("HEX".to_owned(), hex::encode_upper(secret).into_bytes()),
        ("list".to_owned(), decimals.join(", ").into_bytes()),
        ("JSON list".to_owned(), decimals.join(",").into_bytes()),
        ("URL".to_owned(), each(&|b| if unreserved(b) { plain(b) } else { format!("%{b:02X}") })),
        ("url".to_owned(), each(&|b| if unreserved(b) { plain(b) } else { format!("%{b:02x}") })),
        // As Redis prints arguments in MONITOR and SLOWLOG.
        (
            "Redis".to_owned(),
            each(&|b| match b {
                b'\n' => "\\n".to_owned(),
                b'\r' => "\\r".to_owned(),
                b'\t' => "\\t".to_owned(),
                7 => "\\a".to_owned(),
                8 => "\\b".to_owned(),
                b'"' | b'\\' => format!("\\{}", char::from(b)),
                b' '..=b'~' => plain(b),
                _ => format!("\\x{b:02x}"),
            }),
        ),
        ("Rust bytes".to_owned(), secret.escape_ascii().to_string().into_bytes()),
    ];
    for shift in 0..3 {
        // Only the characters that depend on nothing but the secret.
        let shifted = [&vec![0; shift], secret].concat();
        let (from, to) = (shift + usize::from(shift > 0), shifted.len() * 8 / 6);
        for (name, engine) in [("base64", STANDARD_NO_PAD), ("base64url", URL_SAFE_NO_PAD)] {
            let text = engine.encode(&shifted).as_bytes()[from..to].to_vec();
            forms.push((format!("{name} + {shift}"), text));
        }
    }
    if let Ok(text) = std::str::from_utf8(secret) {
        let json = serde_json::to_string(text).unwrap();
        let ascii = |escape: &dyn Fn(u16) -> String| -> String {
            let mut units = json.trim_matches('"').encode_utf16();
            let unit = |u: u16| match u8::try_from(u) {
                Ok(b) if b.is_ascii() => plain(b),
                _ => escape(u),
            };
            units.by_ref().map(unit).collect()
        };
        forms.extend([
            ("JSON".to_owned(), json.trim_matches('"').as_bytes().to_vec()),
            ("JSON, ascii".to_owned(), ascii(&|u| format!("\\u{u:04x}")).into_bytes()),
            ("JSON, ASCII".to_owned(), ascii(&|u| format!("\\u{u:04X}")).into_bytes()),
            ("Rust".to_owned(), text.escape_debug().to_string().into_bytes()),
            ("Rust, ascii".to_owned(), text.escape_default().to_string().into_bytes()),
        ]);
    }
    forms
}

#[test]
fn every_form_is_found_wherever_it_stands() {
    let secret = "kn33dle/+\"quoted\"\nänd 🔑 more=end";
    let needles = Needles::new([("it", secret.as_bytes())]);
    for (form, bytes) in forms(secret.as_bytes()) {
        let around = [b"before ", bytes.as_slice(), b" after"].concat();
        assert!(needles.found_in(&around).contains(&format!("it, {form}").as_str()), "{form}");
    }
    for before in 0..7 {
        for after in 0..7 {
            let text = [&vec![b'x'; before], secret.as_bytes(), &vec![b'y'; after]].concat();
            for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                assert!(!needles.found_in(engine.encode(&text).as_bytes()).is_empty());
            }
        }
    }
    assert_eq!(needles.found_in(b"kn33dle"), Vec::<&str>::new());
}
