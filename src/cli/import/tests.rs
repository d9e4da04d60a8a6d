use proptest::prelude::*;

use super::{
    document::{Entry, Fault},
    parse,
};
use crate::config::Format;

fn read(format: Format, text: &str) -> Result<Vec<(String, String)>, Vec<Fault>> {
    let pair = |entry: Entry| (entry.name.to_string(), entry.value.into_exposed());
    parse(format, text.as_bytes()).map(|entries| entries.into_iter().map(pair).collect())
}

/// The one value of a `.env` file of one secret.
fn value(text: &str) -> Result<String, &'static str> {
    match read(Format::Env, text) {
        Ok(found) => {
            let [(_, value)] = &found[..] else { panic!("{} secrets", found.len()) };
            Ok(value.clone())
        }
        Err(faults) => {
            assert_eq!(faults.len(), 1, "{faults:?}");
            Err(faults[0].rule)
        }
    }
}

#[test]
fn what_all_readers_of_env_files_agree_on_is_taken() {
    for (text, expected) in [
        ("A=value", "value"),
        ("A=value\r\n", "value"),
        ("\u{feff}A=value\n", "value"),
        ("\n  # comment\n\texport  A = value \n\n", "value"),
        ("A=a b  # comment", "a b"),
        ("A=a=b==", "a=b=="),
        ("A=https://u:p@h/?x=1&y=[2]", "https://u:p@h/?x=1&y=[2]"),
        ("exportA=value", "value"),
        ("A='a # $B ${B} $(b) `c` \\n \"q\" '", "a # $B ${B} $(b) `c` \\n \"q\" "),
        ("A='one\ntwo=2\n# three'  # comment\n", "one\ntwo=2\n# three"),
        ("A='one\r\ntwo'\r\n", "one\ntwo"),
        ("A=\"a#b 'q' \\\"w\\\" \\\\ \\$B\\n\\t\\r\"", "a#b 'q' \"w\" \\ $B\n\t\r"),
        ("A=\"one\n two \"# comment", "one\n two "),
        ("A=\"lone \r stays\"", "lone \r stays"),
        ("A=Zoë 🔑", "Zoë 🔑"),
    ] {
        assert_eq!(value(text).as_deref(), Ok(expected), "{text:?}");
    }
}

#[test]
fn what_they_read_differently_is_refused() {
    for text in [
        "A=$B",
        "A=a$",
        "A=${B}",
        "A=a#b",
        "A=a\\nb",
        "A=a'b'",
        "A=it's",
        "A=a\"b",
        "A=`b`",
        "A==",
        "A== ",
        "A=a\u{7}b",
        "A=a\rb",
    ] {
        assert!(value(text).unwrap_err().contains("single quotes"), "{text:?}");
    }
    for text in ["A=\"$B\"", "A=\"${B}\"", "A=\"a$\""] {
        assert!(value(text).unwrap_err().contains("no variable is put in"), "{text:?}");
    }
    for text in ["A=\"\\x41\"", "A=\"\\'\"", "A=\"a\\\nb\""] {
        assert!(value(text).unwrap_err().contains("escape"), "{text:?}");
    }
    for text in ["A='a'b", "A='it\\'s'", "A=\"a\" 'b'"] {
        let rule = value(text).unwrap_err();
        assert!(rule.contains("closing quote"), "{text:?}: {rule}");
    }
    for text in ["A=\"a", "A='a\nB=2\n", "A=\"a\\\""] {
        assert!(value(text).unwrap_err().contains("never closed"), "{text:?}");
    }
    for text in ["A", "A:value", "export A", "-----BEGIN"] {
        assert!(value(text).unwrap_err().contains("NAME=value"), "{text:?}");
    }
    for text in ["A=", "A=''", "A=  # nothing", "A=\"\""] {
        assert_eq!(value(text), Err("must not be empty"), "{text:?}");
    }
}

/// Variables of the test's own process are not put in either.
#[test]
fn the_environment_is_not_looked_at() {
    assert_eq!(value("A='$PATH ${HOME}'").as_deref(), Ok("$PATH ${HOME}"));
}

fn told(format: Format, text: &str) -> Vec<String> {
    read(format, text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn every_fault_of_an_env_file_is_told_with_its_line() {
    let long = "x".repeat(65_537);
    let text = format!(
        "GOOD=1\nno name\n9A=2\n\nTWO='a\nb'\nTHREE=\"$X\n\" \nGOOD=3\n__proto__=4\nLONG={long}\nEND='"
    );
    let told = told(Format::Env, &text);
    let starts = [
        "line 2: must be NAME=value",
        "line 3: name must match",
        "line 7: has $ in double quotes",
        "line 9: name stands twice",
        "line 10: name must not be",
        "line 11: value must have at most",
        "line 12: has a quote",
    ];
    assert_eq!(told.len(), starts.len(), "{told:#?}");
    for (told, start) in told.iter().zip(starts) {
        assert!(told.starts_with(start), "{told}");
    }
    let not_text = parse(Format::Env, b"A=1\nB=\xff\n").err().unwrap();
    assert_eq!(not_text, [Fault { line: 2, field: "", rule: "is not UTF-8" }]);
}

#[test]
fn json_holds_strings_or_objects() {
    let text = r#"{
        "A": "one\ntwo \u00e9 $B",
        "B": {"value": "x", "description": "for people", "expire_time": "2030-01-31T00:00:00Z"},
        "C": {"value": "y", "description": null}
    }"#;
    let entries = parse(Format::Json, text.as_bytes()).ok().unwrap();
    let [a, b, c] = &entries[..] else { panic!("{}", entries.len()) };
    assert_eq!((a.name.as_str(), a.value.expose()), ("A", "one\ntwo é $B"));
    assert!(a.description.is_none() && a.expire_time.is_none());
    assert_eq!(b.description.as_ref().map(ToString::to_string).as_deref(), Some("for people"));
    assert_eq!(b.expire_time.map(|time| time.seconds()), Some(1_896_048_000));
    assert_eq!((c.value.expose(), c.description.is_none()), ("y", true));
}

#[test]
fn every_fault_of_a_json_file_is_told_with_its_line() {
    let text = r#"{
        "A": "1",
        "A": "2", "no name": "3",
        "B": 4, "C": null,
        "D": ["5"],
        "E": {"value": "6", "valeu": "7"},
        "F": {
            "value": "8",
            "expire_time": 9
        },
        "G": {"value": "", "expire_time": "2030-01-31"},
        "H": {"description": "10"},
        "I": {"value": "11", "expire_time": "1970-01-01T00:00:00Z"},
        "J": {"value": "12", "value": "13"}
    }"#;
    let told = told(Format::Json, text);
    let starts = [
        "line 3: name stands twice",
        "line 3: name must match",
        "line 4: must be a string, or",
        "line 4: must be a string, or",
        "line 5: must be a string, or",
        "line 6: must be a string, or",
        "line 9: must be a string, or",
        "line 11: value must not be empty",
        "line 11: expire_time must be a time",
        "line 12: must be a string, or",
        "line 13: expire_time must be a time",
        "line 14: must be a string, or",
    ];
    assert_eq!(told.len(), starts.len(), "{told:#?}");
    for (told, start) in told.iter().zip(starts) {
        assert!(told.starts_with(start), "{told} is not {start}");
    }
    for (text, start) in [
        ("[\"A\"]", "line 1: must be an object"),
        ("\"A\"", "line 1: must be an object"),
        ("{\n\"A\": \"b\",\n}", "line 3: is no JSON"),
        ("{\"A\": \"b\"} {}", "line 1: is no JSON"),
        ("{\"A\": \"b", "line 1: is no JSON"),
        ("", "line 1: is no JSON"),
    ] {
        let told = self::told(Format::Json, text);
        assert!(told.len() == 1 && told[0].starts_with(start), "{text:?}: {told:?}");
    }
}

proptest! {
    #[test]
    fn any_value_can_be_written_and_is_read_as_it_is(value in "(?s).{1,60}") {
        let expected = value.replace("\r\n", "\n");
        if !value.contains('\'') {
            let read = self::value(&format!("A='{value}' # x"));
            prop_assert_eq!(read.as_deref(), Ok(expected.as_str()));
        }
        let mut quoted = value.clone();
        for (plain, escaped) in [("\\", "\\\\"), ("\"", "\\\""), ("$", "\\$"), ("\r", "\\r")] {
            quoted = quoted.replace(plain, escaped);
        }
        let read = self::value(&format!("A=\"{quoted}\""));
        prop_assert_eq!(read.as_deref(), Ok(value.as_str()));
        let json = serde_json::json!({"A": &value}).to_string();
        prop_assert_eq!(read_json(&json), value);
    }

    /// Whatever stands in a file: it is read to the end, or refused with lines
    /// that are there.
    #[test]
    fn any_file_is_read_or_refused(text in "(?s)([A=\"'$#\\\\\\n\\r {}:,]|.){0,40}") {
        for format in [Format::Env, Format::Json] {
            if let Err(faults) = read(format, &text) {
                prop_assert!(!faults.is_empty());
                for fault in faults {
                    prop_assert!((1..=text.split('\n').count()).contains(&fault.line));
                }
            }
        }
    }
}

fn read_json(text: &str) -> String {
    read(Format::Json, text).unwrap().remove(0).1
}
