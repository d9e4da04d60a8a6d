#![no_main]
//! Text without values is the same however it comes in, and no value survives
//! as it is or in an encoding.
//!
//! The input: chunk lengths, then values, then the text, apart by bytes 0xff.
//! In the text, 0xfe and two more bytes put in a form of a value.

use std::sync::Arc;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use libfuzzer_sys::fuzz_target;
use workflow_secrets_fuzz::{
    domain::{Plaintext, SecretName},
    matcher::{Matcher, MatcherOptions, Named, Redactor},
};

/// A value as others write it.
fn forms(value: &str) -> [String; 6] {
    let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    let json = serde_json::to_string(value).expect("JSON");
    let json = json[1..json.len() - 1].to_owned();
    let base64 = [STANDARD.encode(value), URL_SAFE_NO_PAD.encode(value)];
    let [standard, url] = base64;
    [value.to_owned(), hex.to_uppercase(), hex, json, standard, url]
}

/// The text without values, in chunks of these lengths over and over.
fn redacted(matcher: &Arc<Matcher>, text: &[u8], lengths: &[u8]) -> (Vec<u8>, String) {
    let mut redactor = Redactor::new(Arc::clone(matcher));
    let (mut out, mut rest) = (vec![], text);
    for length in lengths.iter().cycle().take_while(|_| lengths.iter().any(|length| *length > 0)) {
        let (chunk, after) = rest.split_at(usize::from(*length).min(rest.len()));
        redactor.push(chunk, &mut out);
        assert!(redactor.consumed() <= (text.len() - after.len()) as u64);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    redactor.push(rest, &mut out);
    redactor.finish(&mut out);
    assert_eq!(redactor.consumed(), text.len() as u64);
    let tally: Vec<_> = redactor.tally().map(|(name, e, n)| format!("{name} {e:?} {n}")).collect();
    (out, tally.join(", "))
}

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0xff);
    let (Some(lengths), Some(source)) = (parts.next(), parts.next_back()) else { return };
    let mut values = vec![];
    for part in parts.take(8) {
        let text = std::str::from_utf8(part).ok().map(str::to_owned);
        let Some(value) = text.and_then(|text| Plaintext::parse(text).ok()) else { return };
        values.push((SecretName::parse(&format!("V{}", values.len())).expect("a name"), value));
    }
    let (mut text, mut source) = (vec![], source.iter().copied());
    while let Some(byte) = source.next() {
        match (byte, source.len()) {
            (0xfe, 2..) if !values.is_empty() => {
                let [which, form] =
                    [source.next(), source.next()].map(|b| usize::from(b.unwrap_or(0)));
                let (_, value) = &values[which % values.len()];
                text.extend_from_slice(forms(value.expose())[form % 6].as_bytes());
            }
            _ => text.push(byte),
        }
    }

    let mask_short = lengths.first() == Some(&1);
    let named = values.iter().map(|(name, value)| Named { name, value });
    let Ok(matcher) = Matcher::new(named, MatcherOptions { mask_short }) else { return };
    let matcher = Arc::new(matcher);
    let whole = redacted(&matcher, &text, &[]);
    assert!(whole == redacted(&matcher, &text, lengths), "the cuts make a difference");

    let (mut expected, mut done, mut masked) = (vec![], 0, vec![false; text.len()]);
    for found in matcher.find(&text) {
        assert!(done <= found.range.start && found.range.start < found.range.end);
        expected.extend_from_slice(&text[done..found.range.start]);
        expected.extend_from_slice(format!("{{{{secrets.{}}}}}", found.name).as_bytes());
        done = found.range.end;
        masked[found.range].fill(true);
    }
    expected.extend_from_slice(&text[done..]);
    assert!(expected == whole.0, "a stream is looked through in another way than a text");

    for (name, value) in &values {
        if matcher.skipped().iter().any(|(skipped, _)| skipped == name) {
            continue;
        }
        for form in forms(value.expose()) {
            // Too short to say anything.
            if form.len() < 4 && form != value.expose() {
                continue;
            }
            for (start, window) in text.windows(form.len()).enumerate() {
                let hidden = || masked[start..start + form.len()].iter().all(|masked| *masked);
                assert!(window != form.as_bytes() || hidden(), "a value survives");
            }
        }
    }
});
