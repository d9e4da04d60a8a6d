use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, sync::atomic::Ordering::Relaxed};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    redactor::SLICE,
    table::{MAX_PIECE, Pattern},
    *,
};
use crate::domain::MAX_VALUE_BYTES;

pub(super) fn matcher(values: &[(&str, &str)], mask_short: bool) -> Result<Arc<Matcher>, TooLarge> {
    let owned: Vec<_> = values
        .iter()
        .map(|(name, value)| {
            let value = Plaintext::parse((*value).to_owned()).expect("value");
            (SecretName::parse(name).expect("name"), value)
        })
        .collect();
    let named = owned.iter().map(|(name, value)| Named { name, value });
    Matcher::new(named, MatcherOptions { mask_short }).map(Arc::new)
}

pub(super) fn of(values: &[&str], mask_short: bool) -> Arc<Matcher> {
    let names: Vec<String> = (0..values.len()).map(|n| format!("V{n:05}")).collect();
    let named: Vec<_> = names.iter().map(String::as_str).zip(values.iter().copied()).collect();
    matcher(&named, mask_short).expect("small")
}

/// The output for text in chunks of these lengths, and the tally.
pub(super) fn redact(
    matcher: &Arc<Matcher>,
    text: &[u8],
    cuts: &[usize],
) -> (Vec<u8>, Vec<(String, Encoding, u64)>) {
    let mut redactor = Redactor::new(Arc::clone(matcher));
    let (mut out, mut rest) = (vec![], text);
    let (_, room) = redactor.held();
    for cut in cuts.iter().cycle().take_while(|_| !cuts.is_empty()) {
        let (chunk, after) = rest.split_at((*cut).min(rest.len()));
        redactor.push(chunk, &mut out);
        let (held, capacity) = redactor.held();
        assert!(held < matcher.table.longest().max(1) && capacity == room);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    redactor.push(rest, &mut out);
    redactor.finish(&mut out);
    assert_eq!(redactor.consumed(), as_u64(text.len()));
    let tally = redactor.tally().map(|(name, e, n)| (name.to_string(), e, n)).collect();
    (out, tally)
}

pub(super) fn whole(matcher: &Arc<Matcher>, text: &str) -> String {
    String::from_utf8(redact(matcher, text.as_bytes(), &[]).0).expect("UTF-8")
}

type Plain = (Range<usize>, String, Encoding);

fn findings(matcher: &Matcher, text: &[u8]) -> Vec<Plain> {
    matcher.find(text).into_iter().map(|f| (f.range, f.name.to_string(), f.encoding)).collect()
}

/// The rule, by trying every pattern at every place.
fn brute(matcher: &Matcher, text: &[u8]) -> Vec<Plain> {
    let patterns = matcher.table.patterns();
    let mut all = vec![];
    for start in 0..text.len() {
        for (index, pattern) in patterns.iter().enumerate() {
            if text[start..].starts_with(matcher.table.bytes(pattern)) {
                all.push((start, Reverse(start + pattern.len()), index));
            }
        }
    }
    all.sort();
    let (mut cut, mut last, mut found): (_, Option<&Pattern>, Vec<Plain>) = (0, None, vec![]);
    for (start, Reverse(end), index) in all.iter().copied() {
        let pattern = &patterns[index];
        let same = last.is_some_and(|last| last.name == pattern.name);
        if end <= cut {
            continue;
        }
        if same && (start < cut || start == cut && pattern.later) {
            found.last_mut().expect("a label").0.end = end;
        } else {
            let name = matcher.names[pattern.name].to_string();
            found.push((start.max(cut)..end, name, pattern.encoding));
        }
        (cut, last) = (end, Some(pattern));
    }
    for (start, Reverse(end), _) in all {
        let covered = |at| found.iter().any(|(range, _, _)| range.contains(&at));
        assert!((start..end).all(covered), "a byte of a match survives");
    }
    found
}

/// The output that findings mean.
fn render(text: &[u8], findings: &[Plain]) -> Vec<u8> {
    let (mut out, mut done) = (vec![], 0);
    for (range, name, _) in findings {
        out.extend_from_slice(&text[done..range.start]);
        out.extend_from_slice(format!("{{{{secrets.{name}}}}}").as_bytes());
        done = range.end;
    }
    out.extend_from_slice(&text[done..]);
    out
}

fn tally(findings: &[Plain]) -> Vec<(String, Encoding, u64)> {
    let mut counts = BTreeMap::new();
    for (_, name, encoding) in findings {
        *counts.entry((name.clone(), *encoding)).or_default() += 1;
    }
    counts.into_iter().map(|((name, encoding), count)| (name, encoding, count)).collect()
}

/// Values that overlap, nest, repeat themselves and share their starts.
fn values() -> impl Strategy<Value = Vec<String>> {
    let value = prop_oneof![
        4 => "[ab]{1,12}",
        2 => "(ab){4,12}",
        2 => "a{8,40}",
        2 => "abababab[abc/ é\\n]{1,12}",
        1 => "[ab]{8,20}\n[ab]{8,20}\r\n",
        1 => "[ab]{1025,1100}",
        1 => Just("a".repeat(2_500)),
    ];
    vec(value, 1..6)
}

/// Text that holds whole values, parts of them and encodings of them.
fn text(values: Vec<String>) -> impl Strategy<Value = (Vec<String>, Vec<u8>)> {
    let part = (0..8_u8, any::<Index>(), any::<Index>(), any::<Index>(), "[ab]{0,12}");
    let parts = vec(part, 0..12);
    (Just(values), parts).prop_map(|(values, parts)| {
        let mut text = vec![];
        for (kind, which, from, to, other) in parts {
            let value = which.get(&values).as_bytes();
            let (from, to) = (from.index(value.len() + 1), to.index(value.len() + 1));
            match kind {
                0..2 => text.extend_from_slice(other.as_bytes()),
                2..4 => text.extend_from_slice(value),
                4 => text.extend_from_slice(&value[from.min(to)..from.max(to)]),
                5 => text.extend_from_slice(hex::encode(value).as_bytes()),
                6 => text.extend_from_slice(&value[from..]),
                _ => {
                    let data = [other.as_bytes(), value, other.as_bytes()].concat();
                    text.extend_from_slice(STANDARD.encode(data).as_bytes());
                }
            }
        }
        (values, text)
    })
}

proptest! {
    #[test]
    fn finds_what_brute_force_finds(
        (values, text) in values().prop_flat_map(text), mask_short: bool,
    ) {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let matcher = of(&values, mask_short);
        prop_assert_eq!(findings(&matcher, &text), brute(&matcher, &text));
    }

    #[test]
    fn chunks_do_not_matter(
        (values, text) in values().prop_flat_map(text), mask_short: bool,
        cuts in prop_oneof![vec(1..3_usize, 1..4), vec(0..200_usize, 1..9)],
    ) {
        prop_assume!(cuts.iter().any(|cut| *cut > 0));
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let matcher = of(&values, mask_short);
        let found = findings(&matcher, &text);
        let expected = (render(&text, &found), tally(&found));
        prop_assert_eq!(&redact(&matcher, &text, &[]), &expected);
        prop_assert_eq!(&redact(&matcher, &text, &cuts), &expected);
    }

    #[test]
    fn a_stream_can_be_taken_up_again(
        (values, text) in values().prop_flat_map(text), at: Index, mask_short: bool,
    ) {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let matcher = of(&values, mask_short);
        let mut redactor = Redactor::new(Arc::clone(&matcher));
        let mut out = vec![];
        redactor.push(&text[..at.index(text.len() + 1)], &mut out);
        let consumed = as_usize(redactor.consumed());
        let pushed = at.index(text.len() + 1);
        prop_assert!((consumed..consumed + 2 * MAX_PIECE).contains(&pushed));
        out.extend(redact(&matcher, &text[consumed..], &[]).0);
        let shown = |out: Vec<u8>| {
            let mut out = String::from_utf8_lossy(&out).into_owned();
            (0..6).for_each(|n| out = out.replace(&format!("{{{{secrets.V{n:05}}}}}"), ""));
            out
        };
        prop_assert_eq!(shown(out), shown(redact(&matcher, &text, &[]).0));
    }

    #[test]
    fn what_holds_no_value_stays(text in vec(any::<u8>(), 0..2_000), cuts in vec(1..99_usize, 1..4)) {
        let matcher = of(&["sk_live_51H8wJqKZvFm0pXbN2cT7", "correct horse\nbattery staple"], false);
        prop_assert_eq!(redact(&matcher, &text, &cuts), (text, vec![]));
    }
}

pub(super) const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcw==\n\
                   ggSjAgEAAoIBAQC7VJTUt9Us\n-----END PRIVATE KEY-----\n";

#[test]
fn labels_and_tally_are_exact() {
    let values = [
        ("A", "sk_live_51H8wJqKZv"),
        ("ALSO_A", "sk_live_51H8wJqKZv"),
        ("B", "correct horse/battery"),
        ("PEM", PEM),
    ];
    let matcher = matcher(&values, false).expect("small");
    let a = "sk_live_51H8wJqKZv";
    let basic = STANDARD.encode(format!("user:{a}"));
    let text = format!(
        "x={a}&y={a}{a} {basic}; correct%20horse%2fbattery \"{}\" correct horse\\/battery",
        PEM.replace('\n', "\\n"),
    );
    let (out, tally) = redact(&matcher, text.as_bytes(), &[1]);
    assert_eq!(
        String::from_utf8_lossy(&out),
        "x={{secrets.A}}&y={{secrets.A}}{{secrets.A}} dXNlcjp{{secrets.A}}; {{secrets.B}} \
         \"{{secrets.PEM}}\" {{secrets.B}}"
    );
    let expected = [
        ("A", Encoding::Raw, 3),
        ("A", Encoding::Base64, 1),
        ("B", Encoding::Url, 1),
        ("B", Encoding::Json, 1),
        ("PEM", Encoding::Json, 1),
    ];
    assert_eq!(tally, expected.map(|(name, encoding, count)| (name.to_owned(), encoding, count)));
}

#[test]
fn long_values_are_found_in_pieces() {
    let value: String = (0..9_000).map(|n| format!("{:07x}", n * 7_919)).collect();
    let matcher = of(&[&value], false);
    assert!(matcher.table.longest() <= MAX_PIECE);
    for encoded in [value.clone(), STANDARD.encode(&value), hex::encode(&value)] {
        assert_eq!(whole(&matcher, &format!("<{encoded}>")), "<{{secrets.V00000}}>");
        let found = matcher.find(encoded.as_bytes());
        assert!(found.len() == 1 && !found[0].partial);
        // Cut at both ends: what is left over is less than a piece.
        let half = &encoded[1_500..encoded.len() - 1_500];
        let found = matcher.find(half.as_bytes());
        assert!(found.len() == 1 && found[0].partial);
        assert!(found[0].range.len() > half.len() - 2 * MAX_PIECE);
    }
    let (_, tally) = redact(&matcher, value.repeat(2).as_bytes(), &[999]);
    assert_eq!(tally, [("V00000".to_owned(), Encoding::Raw, 2)]);
    // All its pieces are equal.
    for value in [value[..MAX_PIECE].repeat(2), "ab".repeat(MAX_VALUE_BYTES / 2)] {
        assert_eq!(whole(&of(&[&value], false), &value), "{{secrets.V00000}}");
    }
}

#[test]
fn a_value_in_a_crowd_is_found() {
    // What is plain in them stands at more places than are kept of a window.
    let mut values: Vec<String> = (1..40).map(|n| format!("{}hunter27", "-".repeat(n))).collect();
    values.push("hunter27".to_owned());
    let matcher = of(&values.iter().map(String::as_str).collect::<Vec<_>>(), false);
    let around = "+".repeat(FEW);
    for shift in 0..4 {
        let text = format!("{around}{}hunter27{around}", "+".repeat(shift));
        assert_eq!(findings(&matcher, text.as_bytes()), brute(&matcher, text.as_bytes()));
        assert_eq!(matcher.find(text.as_bytes()).len(), 1);
    }
}

#[test]
fn short_values_and_words_are_left_out_unless_asked_for() {
    let values = [("A", "1234567"), ("B", "LocalHost"), ("C", "12345678")];
    let careful = matcher(&values, false).expect("small");
    let names: Vec<_> = careful.skipped().iter().map(|(n, why)| (n.as_str(), *why)).collect();
    assert_eq!(names, [("A", Skipped::TooShort), ("B", Skipped::CommonWord)]);
    assert_eq!(whole(&careful, "1234567 LocalHost 12345678"), "1234567 LocalHost {{secrets.C}}");
    let strict = matcher(&values, true).expect("small");
    assert!(strict.skipped().is_empty());
    assert_eq!(
        whole(&strict, "1234567 LocalHost 12345678"),
        "{{secrets.A}} {{secrets.B}} {{secrets.C}}"
    );
}

#[test]
fn overlaps_leave_nothing_and_are_partial() {
    let matcher = of(&["abcdefgh", "efghijkl"], false);
    assert_eq!(whole(&matcher, "abcdefghijkl"), "{{secrets.V00000}}{{secrets.V00001}}");
    let partial: Vec<_> =
        matcher.find(b"abcdefghijkl efghijkl").iter().map(|f| f.partial).collect();
    assert_eq!(partial, [false, true, false]);
    let matcher = of(&["aaaaaaaa"], false);
    assert_eq!(whole(&matcher, "aaaaaaaaa"), "{{secrets.V00000}}");
    assert!(matcher.find(b"aaaaaaaaa")[0].partial);
}

#[test]
fn output_waits_only_for_what_may_be_a_value() {
    let matcher = of(&["sk_live_51H8wJqKZv"], false);
    let mut redactor = Redactor::new(matcher);
    let mut out = vec![];
    redactor.push(b"key: sk_live_51H8", &mut out);
    assert_eq!((&*out, redactor.consumed()), (&b"key: "[..], 5));
    redactor.push(b"wJqKZv", &mut out);
    assert_eq!((&*out, redactor.consumed()), (&b"key: {{secrets.V00000}}"[..], 23));
    redactor.push(b"\n", &mut out);
    assert_eq!(redactor.held().0, 0);
}

#[test]
fn memory_is_bounded() {
    let letter = |n: u8| char::from(n).to_string();
    let long: Vec<String> = (0xc0..=0xff).map(|n| letter(n).repeat(MAX_VALUE_BYTES / 2)).collect();
    let names: Vec<String> = (0..long.len()).map(|n| format!("V{n}")).collect();
    let named: Vec<_> =
        names.iter().map(String::as_str).zip(long.iter().map(String::as_str)).collect();
    assert!(matches!(matcher(&named, false), Err(TooLarge)));
    let value = "A".repeat(MAX_VALUE_BYTES);
    let small = of(&[&value], false);
    assert!((MAX_VALUE_BYTES..64 * MAX_VALUE_BYTES).contains(&small.bytes()));
    // However large a chunk, only a slice of it is held.
    let mut redactor = Redactor::new(small);
    let (_, room) = redactor.held();
    assert!(room <= 2 * SLICE);
    let mut out = vec![];
    redactor.push(value.as_bytes(), &mut out);
    assert!(redactor.held().0 < MAX_PIECE && redactor.held().1 == room);
}

/// Work per byte for a text in chunks of a length.
fn work(matcher: &Arc<Matcher>, text: &[u8], chunk: usize) -> usize {
    matcher.table.work.store(0, Relaxed);
    redact(matcher, text, &[chunk]);
    usize::try_from(matcher.table.work.load(Relaxed)).unwrap() / text.len()
}

#[test]
fn work_per_byte_is_bounded() {
    let middle = "0123456789abcdefghijklmnopqrstuvwxyz";
    let shared: Vec<String> = (0..500).map(|n| format!("{n:05}{middle}{:05}", n * 7)).collect();
    let nested: Vec<String> = (8..1_024).map(|n| "a".repeat(n)).collect();
    let long = ["a".repeat(MAX_VALUE_BYTES), "ab".repeat(MAX_VALUE_BYTES / 2)];
    let ends: Vec<String> = (20..900).map(|n| format!("{}{n}", "a".repeat(n))).collect();
    let starts: Vec<String> = (20..900).map(|n| format!("{n}{}", "a".repeat(n))).collect();
    // With chunks of one byte, and with longer ones.
    for (values, text, single, chunks) in [
        (&shared[..], middle.repeat(200), 60, 1),
        (&shared[..], format!("00007{middle}").repeat(200), 120, 4),
        (&starts[..], "a".repeat(3_000), 60, 8),
        (&ends[..], "a".repeat(3_000), 16 * MAX_PIECE, 5 * MAX_PIECE),
        (&nested[..], "a".repeat(3_000), 16 * MAX_PIECE, 5 * MAX_PIECE),
        (&nested[..], "aaaaaaaab".repeat(300), 200, 100),
        (&long[..], "a".repeat(3_000), 3 * MAX_PIECE, MAX_PIECE),
        (&long[..], "ab".repeat(1_500), 3 * MAX_PIECE, MAX_PIECE),
    ] {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let matcher = of(&values, false);
        for (chunk, bound) in [(1, single), (1_000, chunks), (3_000, chunks)] {
            let work = work(&matcher, text.as_bytes(), chunk);
            assert!(work <= bound, "{} values, chunks of {chunk}: {work}", values.len());
        }
    }
}
