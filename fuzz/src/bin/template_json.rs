#![no_main]
//! A JSON template is what serde_json takes for JSON of the allowed depth;
//! its tokens are what serde_json reads, and rendered it is JSON of the same
//! shape, whatever the values are.

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use workflow_secrets_fuzz::{
    nasty, parse,
    template::{Format, MAX_RENDERED_BYTES, Place},
    tokens,
};

/// Shape and scalars other than strings; members in order of the document
/// would need their keys, which change.
fn same(template: &Value, rendered: &Value) -> bool {
    match (template, rendered) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => b.len() <= a.len(),
        (Value::String(_), Value::String(_)) => true,
        (a, b) => a == b,
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let read = serde_json::from_str::<Value>(source);
    let Some(template) = parse(Format::Json, data) else {
        assert!(read.is_err(), "serde_json takes it");
        return;
    };
    let before = tokens(&template);
    if let Ok(read) = &read {
        // Of double keys both take the last.
        let mut last = HashMap::new();
        for (place, string, text) in &before {
            if let Place::Value { pointer } = place {
                last.insert(pointer, (string, text));
            }
        }
        for (pointer, (string, text)) in last {
            match read.pointer(pointer) {
                Some(Value::String(target)) => assert!(*string && target == text),
                Some(Value::Number(target)) => {
                    assert!(!string && serde_json::from_str(text).ok().as_ref() == Some(target));
                }
                // The last member of that key is no token.
                _ => {}
            }
        }
    }
    let nasty = nasty();
    let Ok(rendered) = template.render(|_| Some(&nasty)) else {
        assert!(template.malformed().len() > 0);
        return;
    };
    assert!(rendered.len() <= MAX_RENDERED_BYTES);
    let again = parse(Format::Json, rendered.as_bytes()).expect("still JSON");
    let after = tokens(&again);
    assert_eq!(before.len(), after.len());
    for ((_, string, text), (_, string_after, text_after)) in before.iter().zip(&after) {
        assert_eq!(string, string_after);
        assert!(*string || text == text_after, "a number changed");
    }
    if let Ok(read) = read {
        let rendered = serde_json::from_str(&rendered).expect("serde_json takes it too");
        assert!(same(&read, &rendered));
    }
    if !before.iter().any(|(_, _, text)| text.contains("secrets")) {
        assert_eq!(*rendered, source);
    }
});
