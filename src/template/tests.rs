mod model;

use std::collections::BTreeMap;

use super::{Format::Json, Format::Text, *};

type Values = BTreeMap<String, Plaintext>;

fn values<const N: usize>(values: [(&str, &str); N]) -> Values {
    let value = |(name, value): (&str, &str)| {
        (name.to_owned(), Plaintext::parse(value.to_owned()).ok().unwrap())
    };
    values.map(value).into_iter().collect()
}

fn parse(format: Format, source: &str) -> Template {
    Template::parse(format, source.to_owned()).ok().unwrap()
}

fn refusal(format: Format, source: &str) -> ParseError {
    Template::parse(format, source.to_owned()).err().unwrap()
}

fn render(format: Format, source: &str, values: &Values) -> Result<String, RenderError> {
    let rendered = parse(format, source).render(|name| values.get(name.as_str()))?;
    // One allocation of the exact length.
    assert_eq!(rendered.capacity(), rendered.len());
    Ok(rendered.to_string())
}

fn places(template: &Template) -> Vec<(String, String)> {
    let known = template.references();
    known.map(|r| (r.name.to_string(), r.location.place().to_string())).collect()
}

fn malformed(template: &Template) -> Vec<String> {
    template.malformed().map(|location| location.place().to_string()).collect()
}

#[test]
fn text_renders() {
    let values = values([("A", "1"), ("B", "{{secrets.A}}"), ("C", "\\")]);
    for (source, rendered) in [
        ("", ""),
        ("{{secrets.A}}", "1"),
        ("x{{secrets.A}}y{{ secrets.A\t}}z", "x1y1z"),
        // Never looked at again, neither alone nor together with its neighbours.
        ("{{secrets.B}}", "{{secrets.A}}"),
        ("{{secrets.C}}{{secrets.A}}", "\\1"),
        ("{{{secrets.A}}}", "{1}"),
        (r"\{{secrets.A}}", "{{secrets.A}}"),
        (r"\\{{secrets.A}}", r"\1"),
        (r"\\\{{secrets.A}}", r"\{{secrets.A}}"),
        (r"\{{secrets.}} {{secrets.A}}", "{{secrets.}} 1"),
        (r"C:\\ \n \{{ $json.id }}{{secrets.A}}\", r"C:\\ \n \{{ $json.id }}1\"),
        ("é\u{1f600}{{secrets.A}}\u{1f600}", "é\u{1f600}1\u{1f600}"),
    ] {
        assert_eq!(render(Text, source, &values).as_deref(), Ok(rendered), "{source}");
    }
}

#[test]
fn json_renders_inside_strings_only() {
    let values =
        values([("A", "1"), ("Q", "a\"\\/\u{8}\u{c}\n\r\t\0\u{10}\u{1f}\u{7f}\u{2028}é\u{1f600}")]);
    for (source, rendered) in [
        (r#""{{secrets.A}}""#, r#""1""#),
        ("1.50e+3", "1.50e+3"),
        (r#"{"{{secrets.A}}": "{{secrets.A}}"}"#, r#"{"1": "1"}"#),
        // What a string means counts, not its spelling.
        (r#""\u007b{secrets.A}}""#, r#""1""#),
        (r#""\u007B\u007b\u0073ecrets.\u0041 }\u007D\u0021""#, r#""1\u0021""#),
        (r#""{{\tsecrets.A}}""#, r#""1""#),
        (r#""{{\nsecrets.A}}""#, r#""{{\nsecrets.A}}""#),
        // The backslash that escapes is one that the string means.
        (r#""\\{{secrets.A}}""#, r#""{{secrets.A}}""#),
        (r#""\u005c{{secrets.A}}""#, r#""{{secrets.A}}""#),
        (r#""\\\u005c{{secrets.A}}""#, r#""\\1""#),
        (r#""\\\\\\{{secrets.A}}""#, r#""\\{{secrets.A}}""#),
        (r#""\"{{secrets.A}}\"""#, r#""\"1\"""#),
        // All else stays byte for byte.
        (
            " {\"b\" :\r\n[1E5,-0.0,1e999, true,null,\"\\/\\u00e9\\ud800x\\udc00\\ud83d\\ude00{{secrets.A}}\\u0041\"],\"b\":{},\"a\":[]}\t",
            " {\"b\" :\r\n[1E5,-0.0,1e999, true,null,\"\\/\\u00e9\\ud800x\\udc00\\ud83d\\ude001\\u0041\"],\"b\":{},\"a\":[]}\t",
        ),
        (
            r#"["{{secrets.Q}}"]"#,
            "[\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u0010\\u001f\u{7f}\u{2028}é\u{1f600}\"]",
        ),
        // Not in strings, so not there: a reference never spans two strings.
        (r#"["{{secrets.","A}}"]"#, ""),
    ] {
        match render(Json, source, &values) {
            Ok(result) => assert_eq!(result, rendered, "{source}"),
            Err(error) => assert!(rendered.is_empty() && error == RenderError::Malformed),
        }
    }
}

#[test]
fn places_in_text_are_lines_and_columns() {
    let template =
        parse(Text, "é{{secrets.A}}\n\n\t\\\\{{secrets.B}}\r\n{{secrets}} é{{secrets.A}}");
    let expected = [("A", "1:2"), ("B", "3:4"), ("A", "4:14")];
    assert_eq!(places(&template), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    assert_eq!(malformed(&template), ["4:1"]);

    // Far from every place that is kept.
    for text in ["é".repeat(5_001), "é\u{1f600}\n".repeat(1_667), "\n".repeat(4_096)] {
        let template = parse(Text, &format!("{text}{{{{secrets.A}}}}"));
        let line = text.matches('\n').count() + 1;
        let column = text.rsplit('\n').next().unwrap().chars().count() + 1;
        assert_eq!(places(&template)[0].1, format!("{line}:{column}"));
    }
}

#[test]
fn places_in_json_are_pointers() {
    let r = "{{secrets.A}}";
    let source = format!(
        r#"{{"a":[0,"{r}",[],{{}},{{"":"{r}"}},"{r}"],"~/\u0041\ud800":{{"x":[["","{r}{r}"]]}},"b{r}":["{{{{secrets}}}}"],"c":"{r}"}}"#
    );
    let template = parse(Json, &source);
    let found: Vec<_> = places(&template).into_iter().map(|(_, place)| place).collect();
    assert_eq!(
        found,
        [
            "/a/1",
            "/a/4/",
            "/a/5",
            "/~0~1A\u{fffd}/x/0/1",
            "/~0~1A\u{fffd}/x/0/1",
            "/b{{secrets.A}} (key)",
            "/c"
        ]
    );
    assert_eq!(malformed(&template), ["/b{{secrets.A}}/0"]);
    let key = template.references().nth(5).unwrap().location.place();
    assert!(key == Place::Key { pointer: "/b{{secrets.A}}".into() });
    assert!(
        parse(Json, "\"{{secrets}}\"").malformed().next().unwrap().place()
            == Place::Value { pointer: "".into() }
    );

    // A pointer leads where it says.
    let value: serde_json::Value = serde_json::from_str(&source.replace("\\ud800", "")).unwrap();
    for pointer in found.iter().filter(|pointer| !pointer.ends_with(" (key)")) {
        let target = value.pointer(&pointer.replace('\u{fffd}', "")).unwrap();
        assert!(target.as_str().unwrap().contains(r), "{pointer}");
    }
}

#[test]
fn names_are_told_once() {
    let template = parse(Text, r"{{secrets.B}}{{secrets.A}}\{{secrets.C}}{{secrets.B}}");
    let names: Vec<_> = template.names().into_iter().map(SecretName::as_str).collect();
    assert_eq!(names, ["A", "B"]);
}

#[test]
fn what_does_not_render_says_why() {
    let values = values([("A", "1")]);
    for (format, source) in [(Text, "{{secrets.A}} {{secrets}}"), (Json, "\"{{secrets.A\"")] {
        assert_eq!(render(format, source, &values), Err(RenderError::Malformed));
    }
    let missing = SecretName::parse("B").unwrap();
    assert_eq!(
        render(Text, "{{secrets.A}}{{secrets.B}}", &values),
        Err(RenderError::Missing(missing))
    );
}

#[test]
fn the_length_of_a_result_is_limited_exactly() {
    let values = values([("A", &"\n".repeat(65_536)), ("B", "\0")]);
    let full = "{{secrets.A}}".repeat(63);
    let text = format!("{full}{{{{secrets.A}}}}");
    assert_eq!(render(Text, &text, &values).map(|text| text.len()), Ok(MAX_RENDERED_BYTES));
    assert_eq!(render(Text, &format!("{text}x"), &values), Err(RenderError::TooLarge));
    // Escaped bytes count as they are written.
    let json = format!("\"{}", "{{secrets.A}}".repeat(31));
    let rest = "x".repeat(2 * 65_536 - 8);
    let exact = format!("{json}{rest}{{{{secrets.B}}}}\"");
    assert_eq!(render(Json, &exact, &values).map(|text| text.len()), Ok(MAX_RENDERED_BYTES));
    let over = format!("{json}{rest}x{{{{secrets.B}}}}\"");
    assert_eq!(render(Json, &over, &values), Err(RenderError::TooLarge));
    // Some 5 GB, were it written.
    let many = "{{secrets.A}}".repeat(80_000);
    assert_eq!(render(Text, &many, &values), Err(RenderError::TooLarge));
}

#[test]
fn the_length_of_a_template_is_limited_exactly() {
    for format in [Text, Json] {
        let fits = format!("1{}", " ".repeat(MAX_TEMPLATE_BYTES - 1));
        assert!(Template::parse(format, fits.clone()).is_ok());
        assert_eq!(refusal(format, &(fits + " ")), ParseError::TooLarge);
    }
}

#[test]
fn nesting_is_limited_exactly() {
    let nested = |levels: usize, open: &str, close: &str| {
        format!("{}\"{{{{secrets.A}}}}\"{}", open.repeat(levels), close.repeat(levels))
    };
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let template = parse(Json, &nested(128, open, close));
        assert_eq!(template.references().count(), 1);
        let column = 128 * open.len() + 1;
        let too_deep = ParseError::TooDeep { line: 1, column };
        assert_eq!(refusal(Json, &nested(129, open, close)), too_deep);
        assert_eq!(refusal(Json, &nested(50_000, open, close)), too_deep);
    }
    // Wide is not deep.
    parse(Json, &format!("[{}[]]", "[[]],{},".repeat(1_000)));
}

#[test]
fn what_is_no_json_is_refused_with_its_place_only() {
    for (source, line, column) in [
        ("", 1, 1),
        ("\u{feff}{}", 1, 1),
        ("nul", 1, 3),
        ("[1,]", 1, 4),
        ("[01]", 1, 3),
        ("{\"é\u{1f600}\" 1}", 1, 7),
        ("\n\n [\"é\u{1}\"]", 3, 4),
        ("{}\n\nx", 3, 1),
        ("\"\\x\"", 1, 3),
        ("\"\\u12g4\"", 1, 7),
        ("[NaN]", 1, 2),
        ("{'a':1}", 1, 2),
        ("// x\n1", 1, 1),
        ("\"{{secrets.A}}\" {{secrets.A}}", 1, 17),
    ] {
        let error = refusal(Json, source);
        assert_eq!(error, ParseError::InvalidJson { line, column }, "{source:?}");
    }
    let error = refusal(Json, "[sk_live_1]").to_string();
    assert_eq!(error, "is not valid JSON at line 1, column 2");
}

/// Templates of full length that would take a quadratic algorithm an hour.
#[test]
fn hostile_templates_are_done_in_one_pass() {
    let fill = |before: &str, part: &str, after: &str| {
        let room = MAX_TEMPLATE_BYTES - before.len() - after.len();
        format!("{before}{}{after}", part.repeat(room / part.len()))
    };
    for (format, source, references, malformed) in [
        (Text, fill("", "{", ""), 0, 0),
        (Text, fill("", "{{secrets.A}}", ""), 80_659, 0),
        (Text, fill("", "{{secrets", ""), 0, 116_508),
        (Text, fill("", "\\", "{{secrets.A}}"), 0, 0),
        // A string with an escape, so that offsets must be mapped.
        (Json, fill("\"\\n", "{{secrets.A}}", "\""), 80_659, 0),
        (Json, fill("\"", "{{secrets.\\u0041}}", "\""), 58_254, 0),
        (Json, fill("\"\\n", "\\\\\\\\{{secrets}}", "\""), 0, 69_904),
        // A path as long as half the template to every reference.
        (
            Json,
            fill(&format!("{{\"{}\":[", "k".repeat(500_000)), "\"{{secrets.A}}\",", "0]}"),
            34_285,
            0,
        ),
        (Json, fill("[", "\"{{secrets.A}}\",", "0]"), 65_535, 0),
        (Json, fill("[", "1,", "1]"), 0, 0),
    ] {
        let template = parse(format, &source);
        assert_eq!(template.references().count(), references);
        assert_eq!(template.malformed().len(), malformed);
        let last = template.references().last().map(|r| r.location.place());
        assert_eq!(last.is_some(), references > 0);
        if malformed == 0 {
            let values = values([("A", "1")]);
            assert!(template.render(|name| values.get(name.as_str())).is_ok());
        }
    }
}
