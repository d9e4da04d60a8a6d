//! Rendering against a second, naive telling of the grammar, and against
//! serde_json's reading of template and result.

use proptest::{prelude::*, sample::select};
use serde::{Deserialize, Deserializer, de};

use super::{Values, render, values};
use crate::{
    domain::SecretName,
    template::Format::{Json, Text},
};

/// The grammar once more, told in another way: `None` if something is malformed.
fn model(text: &str, values: &Values) -> Option<String> {
    let opening = |text: &str| {
        let word =
            text.strip_prefix("{{")?.trim_start_matches([' ', '\t']).strip_prefix("secrets")?;
        let goes_on = word.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        (!goes_on).then_some(text.len() - word.len())
    };
    let (mut rest, mut result) = (text, String::new());
    while let Some(first) = rest.chars().next() {
        let escaped = rest.trim_start_matches('\\');
        let backslashes = rest.len() - escaped.len();
        let Some(length) = opening(escaped) else {
            let kept = backslashes.max(first.len_utf8());
            result.push_str(&rest[..kept]);
            rest = &rest[kept..];
            continue;
        };
        result.push_str(&"\\".repeat(backslashes / 2));
        let (word, after) = escaped.split_at(length);
        if backslashes % 2 == 1 {
            result.push_str(word);
            rest = after;
        } else {
            let (name, after) = after.strip_prefix('.')?.split_once("}}")?;
            let name = SecretName::parse(name.trim_end_matches([' ', '\t'])).ok()?;
            result.push_str(values[name.as_str()].expose());
            rest = after;
        }
    }
    Some(result)
}

/// JSON with its order and double keys.
#[derive(Debug, Clone, PartialEq)]
enum Doc {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    String(String),
    Array(Vec<Doc>),
    Object(Vec<(String, Doc)>),
}

impl<'de> Deserialize<'de> for Doc {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Doc;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Doc, E> {
                Ok(Doc::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Doc, E> {
                Ok(Doc::Bool(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Doc, E> {
                Ok(Doc::Number(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Doc, E> {
                Ok(Doc::String(value.to_owned()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Doc, A::Error> {
                let mut all = vec![];
                while let Some(element) = seq.next_element()? {
                    all.push(element);
                }
                Ok(Doc::Array(all))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Doc, A::Error> {
                let mut all = vec![];
                while let Some(member) = map.next_entry()? {
                    all.push(member);
                }
                Ok(Doc::Object(all))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Doc {
    /// The same with every string, keys too, replaced.
    fn map(&self, change: &impl Fn(&str) -> Option<String>) -> Option<Doc> {
        Some(match self {
            Doc::String(text) => Doc::String(change(text)?),
            Doc::Array(all) => {
                Doc::Array(all.iter().map(|doc| doc.map(change)).collect::<Option<_>>()?)
            }
            Doc::Object(all) => {
                let member = |(key, doc): &(String, Doc)| Some((change(key)?, doc.map(change)?));
                Doc::Object(all.iter().map(member).collect::<Option<_>>()?)
            }
            other => other.clone(),
        })
    }

    /// Spells it, in one of many ways.
    fn spell(&self, ways: &mut impl Iterator<Item = u8>, into: &mut String) {
        let blank = |way: Option<u8>| ["", "", " ", "\n\t"][usize::from(way.unwrap() % 4)];
        let string = |text: &str, ways: &mut dyn Iterator<Item = u8>, into: &mut String| {
            into.push('"');
            for c in text.chars() {
                let way = ways.next().unwrap() % 8;
                if way == 0 || c < ' ' {
                    let units = c.encode_utf16(&mut [0; 2]).to_vec();
                    into.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
                } else if c == '"' || c == '\\' || (c == '/' && way == 1) {
                    into.extend(['\\', c]);
                } else {
                    into.push(c);
                }
            }
            into.push('"');
        };
        into.push_str(blank(ways.next()));
        match self {
            Doc::Null => into.push_str("null"),
            Doc::Bool(value) => into.push_str(&value.to_string()),
            Doc::Number(value) => into.push_str(&value.to_string()),
            Doc::String(text) => string(text, ways, into),
            Doc::Array(all) => {
                into.push('[');
                for (n, doc) in all.iter().enumerate() {
                    into.push_str(if n > 0 { "," } else { "" });
                    doc.spell(ways, into);
                }
                into.push(']');
            }
            Doc::Object(all) => {
                into.push('{');
                for (n, (key, doc)) in all.iter().enumerate() {
                    into.push_str(if n > 0 { "," } else { "" });
                    into.push_str(blank(ways.next()));
                    string(key, ways, into);
                    into.push_str(blank(ways.next()));
                    into.push(':');
                    doc.spell(ways, into);
                }
                into.push('}');
            }
        }
        into.push_str(blank(ways.next()));
    }
}

fn pieces() -> impl Strategy<Value = String> {
    const PARTS: [&str; 24] = [
        "{",
        "{{",
        "}}",
        "\\",
        "\\\\",
        "secrets",
        ".",
        "A",
        "B",
        " ",
        "\t",
        "\n",
        "{{secrets.A}}",
        "{{ secrets.B }}",
        "\\{{secrets.A}}",
        "\\\\{{secrets.B}}",
        "{{secrets}}",
        "é",
        "\u{1f600}",
        "\u{2028}",
        "\"",
        "/",
        "\0",
        "x",
    ];
    // Mostly without anything malformed, or little would be compared.
    const CALM: [&str; 17] = [
        "{",
        "\\",
        "\\\\",
        " ",
        "\n",
        "{{secrets.A}}",
        "{{\tsecrets.B }}",
        "\\{{secrets.A}}",
        "\\",
        "}}",
        "é",
        "\u{1f600}",
        "\"",
        "/",
        "\0",
        "secrets.A",
        "{{x}}",
    ];
    let join = |parts: Vec<&str>| parts.concat();
    prop_oneof![
        1 => proptest::collection::vec(select(&PARTS[..]), 0..12).prop_map(join),
        3 => proptest::collection::vec(select(&CALM[..]), 0..12).prop_map(join),
    ]
}

fn docs() -> impl Strategy<Value = Doc> {
    let leaf = prop_oneof![
        1 => Just(Doc::Null),
        1 => any::<bool>().prop_map(Doc::Bool),
        1 => any::<u64>().prop_map(|number| Doc::Number(number.into())),
        5 => pieces().prop_map(Doc::String),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Doc::Array),
            proptest::collection::vec((pieces(), inner), 0..4).prop_map(Doc::Object),
        ]
    })
}

/// Values that would break out of a string or be taken for a reference.
fn nasty() -> impl Strategy<Value = [String; 2]> {
    let parts = select(
        &["\"", "\\", "\n", "\0", "\u{2028}", "{", "}", "{{secrets.A}}", "\u{1f600}", "a"][..],
    );
    let value = || proptest::collection::vec(parts.clone(), 1..6).prop_map(|parts| parts.concat());
    [value(), value()]
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn text_renders_as_the_model_does(source in pieces(), [a, b] in nasty()) {
        let values = values([("A", &a), ("B", &b)]);
        let known = model(&source, &values);
        let rendered = render(Text, &source, &values);
        prop_assert_eq!(rendered.ok(), known);
    }

    #[test]
    fn json_renders_as_the_model_does(
        doc in docs(),
        ways in proptest::collection::vec(any::<u8>(), 1..64),
        [a, b] in nasty(),
    ) {
        let values = values([("A", &a), ("B", &b)]);
        let mut source = String::new();
        doc.spell(&mut ways.into_iter().cycle(), &mut source);
        let rendered = render(Json, &source, &values).ok();
        let rendered = rendered.map(|text| serde_json::from_str::<Doc>(&text).unwrap());
        prop_assert_eq!(rendered, doc.map(&|text| model(text, &values)));
    }

    #[test]
    fn without_references_nothing_changes(source in any::<String>(), ways in any::<[u8; 8]>()) {
        let none = Values::new();
        prop_assert_eq!(render(Text, &source, &none), Ok(source.clone()));
        let mut json = String::new();
        Doc::String(source).spell(&mut ways.into_iter().cycle(), &mut json);
        prop_assert_eq!(render(Json, &json, &none), Ok(json));
    }
}
