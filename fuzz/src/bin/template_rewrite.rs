#![no_main]
//! Parts of strings and numbers taken out, and put back by rendering: the
//! document means what it meant. The first two bytes tell which parts.

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use workflow_secrets_fuzz::{
    domain::SecretName,
    parse,
    template::{Edit, Format, Replacement, RewriteError, Token},
    tokens, value,
};

fuzz_target!(|data: &[u8]| {
    let Some(([skip, take], source)) = data.split_first_chunk() else { return };
    let (skip, take) = (usize::from(*skip), usize::from(*take % 16) + 1);
    let format = if skip % 2 == 0 { Format::Json } else { Format::Text };
    let Some(template) = parse(format, source) else { return };
    let before = tokens(&template);

    let mut taken = BTreeMap::new();
    let rewritten = template.rewrite(|_, token| {
        let (Token::String(text) | Token::Number(text)) = token;
        let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
        let mut edits = vec![];
        while let (Some(start), Some(end)) = (ends.nth(skip / 2 % 8), ends.nth(take - 1)) {
            let name = SecretName::parse(&format!("S{}", taken.len())).expect("a name");
            taken.insert(name.clone(), value(&text[start..end]));
            edits.push(Edit { range: start..end, with: Replacement::Reference(name) });
        }
        edits
    });
    let rewritten = match rewritten {
        Ok(rewritten) => rewritten,
        Err(RewriteError::TooLarge) => return,
        Err(RewriteError::Unfit) => panic!("every edit fits"),
    };
    let again = parse(format, rewritten.as_bytes()).expect("still of its format");
    assert_eq!(tokens(&again).len(), before.len());
    if taken.is_empty() {
        assert_eq!(rewritten.as_bytes(), source);
    }
    // Of a template that has references, or nearly, an edit may cut one.
    if before.iter().any(|(_, _, text)| text.contains("secrets")) {
        return;
    }
    assert_eq!(again.references().count(), taken.len());
    let rendered = again.render(|name| taken.get(name)).expect("it renders");
    let after = tokens(&parse(format, rendered.as_bytes()).expect("still of its format"));
    for ((_, string, text), (_, string_after, text_after)) in before.iter().zip(&after) {
        assert_eq!(text, text_after);
        assert!(string == string_after || *string_after, "a string became a number");
    }
});
