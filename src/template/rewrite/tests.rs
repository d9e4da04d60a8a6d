use std::collections::BTreeMap;

use proptest::{prelude::*, sample::select};

use super::*;
use crate::{
    domain::Plaintext,
    template::Format::{Json, Text},
};

fn parse(format: Format, source: &str) -> Template {
    Template::parse(format, source.to_owned()).ok().unwrap()
}

fn name(name: &str) -> SecretName {
    SecretName::parse(name).unwrap()
}

fn refer(range: Range<usize>, name: SecretName) -> Edit {
    Edit { range, with: Replacement::Reference(name) }
}

/// Puts a reference to `A` in place of every occurrence.
fn replace(format: Format, source: &str, pasted: &str) -> Result<String, RewriteError> {
    let rewritten = parse(format, source).rewrite(|_, token| {
        let (Token::String(text) | Token::Number(text)) = token;
        let found = text.match_indices(pasted);
        found.map(|(at, _)| refer(at..at + pasted.len(), name("A"))).collect()
    });
    rewritten.map(|text| text.to_string())
}

fn told(format: Format, source: &str) -> Vec<(String, String)> {
    let mut tokens = vec![];
    parse(format, source).tokens(|location, token| {
        let token = match token {
            Token::String(text) => format!("string {text}"),
            Token::Number(text) => format!("number {text}"),
        };
        tokens.push((location.place().to_string(), token));
    });
    tokens
}

#[test]
fn tokens_are_strings_keys_and_numbers() {
    let source = r#"{"k\u0065y":[-1.50E+2,true,null,"a\n\ud800\/"],"":{"x":0},"{{secrets.A}}":""}"#;
    let expected = [
        ("/key (key)", "string key"),
        ("/key/0", "number -1.50E+2"),
        ("/key/3", "string a\n\u{fffd}/"),
        ("/ (key)", "string "),
        ("//x (key)", "string x"),
        ("//x", "number 0"),
        ("/{{secrets.A}} (key)", "string {{secrets.A}}"),
        ("/{{secrets.A}}", "string "),
    ];
    assert_eq!(told(Json, source), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    // A key is only what stands where a key stands.
    let source = r#"[{},"a\"\\\b\f\n\r\t",{"b":[]},2]"#;
    let expected =
        [("/1", "string a\"\\\u{8}\u{c}\n\r\t"), ("/2/b (key)", "string b"), ("/3", "number 2")];
    assert_eq!(told(Json, source), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert_eq!(told(Json, " -7 "), [(String::new(), "number -7".to_owned())]);
    assert_eq!(told(Text, "1 \\n\""), [("1:1".to_owned(), "string 1 \\n\"".to_owned())]);
    assert_eq!(told(Text, "").len(), 1);
}

#[test]
fn a_place_within_text_is_told() {
    let mut places = vec![];
    parse(Text, "é\nxy").tokens(|location, _| {
        places = [0, 2, 3, 4].map(|at| location.place_at(at).to_string()).to_vec();
    });
    assert_eq!(places, ["1:1", "1:2", "2:1", "2:2"]);
}

#[test]
fn pasted_values_become_references() {
    for (format, source, rewritten) in [
        (Text, "key=k3y; k3y", "key={{secrets.A}}; {{secrets.A}}"),
        (Text, r"\nk3y\n", r"\n{{secrets.A}}\n"),
        (Text, "k3yk3y", "{{secrets.A}}{{secrets.A}}"),
        (Text, "{{k3y}}", "{{{{secrets.A}}}}"),
        // A backslash before it would escape the reference.
        (Text, r"\k3y \\k3y k3y", r"\\{{secrets.A}} \\\\{{secrets.A}} {{secrets.A}}"),
        (Text, r"\{k3y", r"\{{{secrets.A}}"),
        (Json, r#"{"k3y": "k3y"}"#, r#"{"{{secrets.A}}": "{{secrets.A}}"}"#),
        (Json, r#" "Bearer \u006b3y\u0020" "#, r#" "Bearer {{secrets.A}}\u0020" "#),
        (Json, r#""\\k3y\\""#, r#""\\\\{{secrets.A}}\\""#),
        (Json, r#""\u005ck3y""#, r#""\u005c\\{{secrets.A}}""#),
        (
            Json,
            r#"["\ud800\/\nk3y\ud83d\ude00", 1.0e5]"#,
            r#"["\ud800\/\n{{secrets.A}}\ud83d\ude00", 1.0e5]"#,
        ),
    ] {
        assert_eq!(replace(format, source, "k3y").as_deref(), Ok(rewritten), "{source}");
    }
}

#[test]
fn a_number_that_holds_a_value_becomes_a_string() {
    for (source, rewritten) in [
        ("[12345, 1]", r#"["{{secrets.A}}", 1]"#),
        (r#"{"a":-12345.5e1 }"#, r#"{"a":"-{{secrets.A}}.5e1" }"#),
        ("1234512345", r#""{{secrets.A}}{{secrets.A}}""#),
    ] {
        assert_eq!(replace(Json, source, "12345").as_deref(), Ok(rewritten), "{source}");
    }
}

#[test]
fn edits_that_do_not_fit_are_refused() {
    for ranges in [
        &[(0, 0)][..],
        &[(2, 1)],
        &[(0, 9)],
        &[(7, 9)],
        &[(0, 2)],
        &[(4, 5), (0, 1)],
        &[(0, 1), (0, 1)],
        &[(0, 4), (3, 5)],
        &[(0, usize::MAX)],
    ] {
        for source in [r#""x\u00e9yzab""#, "\"xéyzab\""] {
            let rewritten = parse(Json, source).rewrite(|_, _| {
                ranges.iter().map(|&(start, end)| refer(start..end, name("A"))).collect()
            });
            assert_eq!(rewritten.err(), Some(RewriteError::Unfit), "{ranges:?}");
        }
    }
}

#[test]
fn the_length_of_a_result_is_limited_exactly() {
    let long = name(&"n".repeat(128));
    for (blanks, length) in [
        (MAX_TEMPLATE_BYTES - 140, Ok(MAX_TEMPLATE_BYTES)),
        (MAX_TEMPLATE_BYTES - 139, Err(RewriteError::TooLarge)),
    ] {
        let template = parse(Text, &format!("x{}", " ".repeat(blanks)));
        let rewritten = template.rewrite(|_, _| vec![refer(0..1, long.clone())]);
        assert_eq!(rewritten.map(|text| text.len()), length);
    }
    let many = "x".repeat(MAX_TEMPLATE_BYTES);
    assert_eq!(replace(Text, &many, "x"), Err(RewriteError::TooLarge));
    // It ends as soon as the references alone are too long.
    let (template, mut seen) = (parse(Json, &format!("[{}1]", "1,".repeat(500_000))), 0);
    let rewritten = template.rewrite(|_, _| {
        seen += 1;
        vec![refer(0..1, long.clone())]
    });
    assert_eq!((rewritten.err(), seen), (Some(RewriteError::TooLarge), 7_490));
}

fn spelled() -> impl Strategy<Value = String> {
    let parts = [
        "a",
        "b",
        "\\\\",
        "\\\\\\\\",
        "{",
        "}",
        "{{",
        "}}",
        "\\n",
        "\\u005c",
        "\\u007b",
        "\\\"",
        "\\ud83d\\ude00",
        "é",
        "\\/",
        " ",
    ];
    proptest::collection::vec(select(parts.to_vec()), 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    /// Take any parts out, put their values back in by rendering: the document
    /// means what it meant, and was not changed outside of strings.
    #[test]
    fn rendering_undoes_rewriting(
        strings in proptest::collection::vec(spelled(), 1..5),
        cuts in proptest::collection::vec((0usize..4, 1usize..4), 0..8),
    ) {
        let members: Vec<_> = strings.iter().map(|raw| format!("\"{raw}\" :\t[ \"{raw}\" , 1.50]")).collect();
        let source = format!("[{{ {} }}]", members.join(" ,\n"));
        let template = parse(Json, &source);
        prop_assert!(template.malformed().len() == 0 && template.references().next().is_none());

        let mut taken = BTreeMap::new();
        let rewritten = template.rewrite(|_, token| {
            let Token::String(text) = token else { return vec![] };
            let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            let mut edits = vec![];
            for (skip, take) in &cuts {
                let (Some(start), Some(end)) = (ends.nth(*skip), ends.nth(take - 1)) else { break };
                let name = name(&format!("S{}", taken.len()));
                let value = Plaintext::parse(text[start..end].to_owned()).ok().unwrap();
                taken.insert(name.clone(), value);
                edits.push(refer(start..end, name));
            }
            edits
        });
        let rewritten = rewritten.unwrap().to_string();
        let again = parse(Json, &rewritten);
        let names: Vec<_> = again.references().map(|reference| reference.name.clone()).collect();
        prop_assert_eq!(names.len(), taken.len());
        let rendered = again.render(|name| taken.get(name)).unwrap();
        prop_assert_eq!(told(Json, &rendered), told(Json, &source));
        if taken.is_empty() {
            prop_assert_eq!(rewritten, source);
        }
    }

    #[test]
    fn rendering_undoes_rewriting_of_text(before in "[\\\\{} a]{0,6}", after in "[\\\\{} a]{0,6}") {
        let source = format!("{before}k3y{after}");
        let rewritten = replace(Text, &source, "k3y").unwrap();
        let value = Plaintext::parse("k3y".to_owned()).ok().unwrap();
        let rendered = parse(Text, &rewritten).render(|_| Some(&value)).unwrap();
        prop_assert_eq!(rendered.as_str(), source);
    }
}
