//! What must hold of documents and streams for all that they may be made of,
//! over gRPC: many cases, the same in each run.

use proptest::{
    collection::vec, prelude::*, sample::select, strategy::ValueTree as _, test_runner::TestRunner,
};
use serde_json::{Value, json};
use workflow_secrets::grpc::ServerConfig;

use super::support::{
    documents::{open, prepare, redact_bytes, render_json, render_text},
    edge::{CALLER, Edge},
    encodings::written,
    platform::{Client, create},
};

/// So many values of a strategy.
fn samples<S: Strategy>(strategy: S, count: usize) -> Vec<S::Value> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

async fn edge() -> (Edge, Client) {
    let edge = Edge::start(ServerConfig::default()).await;
    let client = edge.client(CALLER).await;
    (edge, client.max_encoding_message_size(2 * 1024 * 1024))
}

/// Stores values as `V0`, `V1`, ... of a workspace.
async fn store(client: &mut Client, workspace: &str, values: &[String]) {
    for (i, value) in values.iter().enumerate() {
        client.create_secret(create(workspace, &format!("V{i}"), value)).await.unwrap();
    }
}

/// Text made of such pieces.
fn of(pieces: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    vec(select(pieces), 0..12).prop_map(|pieces| pieces.concat())
}

/// A JSON document with such texts in its strings and keys, written in many
/// ways.
fn document(text: impl Strategy<Value = String> + Clone + 'static) -> BoxedStrategy<String> {
    let blanks = || select(&["", " ", "\n", "\t ", "\r\n  "][..]);
    let plain = |text: String| serde_json::to_string(&text).unwrap();
    let escaped = |text: String| {
        let units = text.encode_utf16().map(|unit| format!("\\u{unit:04X}"));
        format!("\"{}\"", units.collect::<String>())
    };
    let leaf = prop_oneof![
        4 => text.clone().prop_map(plain),
        2 => text.clone().prop_map(escaped),
        1 => select(&["0", "-0.0", "1.50e+3", "1E2", "123456789012345678901234567890"][..])
            .prop_map(str::to_owned),
        1 => select(&["true", "false", "null"][..]).prop_map(str::to_owned),
    ];
    let nested = leaf.prop_recursive(4, 40, 6, move |inner| {
        let element = (blanks(), inner.clone(), blanks());
        let element = element.prop_map(|(before, one, after)| format!("{before}{one}{after}"));
        let member = (text.clone(), element.clone());
        let object = |members: Vec<(String, String)>| {
            let members = members.into_iter().enumerate();
            // Keys stay apart, whatever is put in.
            let member =
                |(i, (key, element))| format!("{}:{element}", json!(format!("k{i}:{key}")));
            format!("{{{}}}", members.map(member).collect::<Vec<_>>().join(","))
        };
        prop_oneof![
            vec(element, 0..6).prop_map(|elements| format!("[{}]", elements.join(","))),
            vec(member, 0..6).prop_map(object),
        ]
    });
    (blanks(), nested, blanks())
        .prop_map(|(before, document, after)| format!("{before}{document}{after}"))
        .boxed()
}

#[tokio::test]
async fn a_document_without_references_comes_back_byte_for_byte() {
    let pieces = &[
        "{",
        "{{",
        "}}",
        "\\",
        "\\\\",
        "{{ $json.id }}",
        "{{secretsmanager.x}}",
        "{{ secrets_ }}",
        "{{ \"a\" + secrets.A }}",
        "{ {secrets.A}}",
        "\"",
        "\n",
        "\r\n",
        "\t",
        "\0",
        "\u{1f}",
        "\u{7f}",
        "é",
        "\u{2028}",
        "\u{feff}",
        "🔑",
        "~/",
        "a",
    ];
    let (_edge, mut client) = edge().await;
    for text in samples(of(pieces), 60) {
        let answer = client.render_template(render_text("ws", &text)).await.unwrap();
        assert_eq!((&answer.get_ref().rendered, answer.get_ref().used.len()), (&text, 0));
    }
    for text in samples(document(of(pieces)), 60) {
        for request in [render_json("ws", &text), render_text("ws", &text)] {
            let answer = client.render_template(request).await.unwrap();
            assert_eq!((&answer.get_ref().rendered, answer.get_ref().used.len()), (&text, 0));
        }
    }
    // What JSON allows and no string of ours has.
    let odd = "{\"\\ud800\": [\"\\/\", \"\\u00e9\"], \"\\ud800\": \"\\udc00\\ud800 \\b\"}";
    let answer = client.render_template(render_json("ws", odd)).await.unwrap();
    assert_eq!(answer.get_ref().rendered, odd);
}

/// Puts the values in, as simply as can be.
fn substituted(text: &str, values: &[String]) -> String {
    let Some((before, rest)) = text.split_once("{{secrets.V") else { return text.to_owned() };
    let (number, rest) = rest.split_once("}}").unwrap();
    let value = &values[number.parse::<usize>().unwrap()];
    format!("{before}{value}{}", substituted(rest, values))
}

fn rendered(document: Value, values: &[String]) -> Value {
    match document {
        Value::String(text) => Value::String(substituted(&text, values)),
        Value::Array(all) => all.into_iter().map(|one| rendered(one, values)).collect(),
        Value::Object(all) => {
            let member =
                |(key, one): (String, _)| (substituted(&key, values), rendered(one, values));
            Value::Object(all.into_iter().map(member).collect())
        }
        other => other,
    }
}

#[tokio::test]
async fn a_rendered_document_is_json_whatever_the_values_are() {
    let pieces = &[
        "{{secrets.V0}}",
        "{{secrets.V1}}",
        "{{secrets.V2}}",
        "{{secrets.V3}}",
        "{",
        "}}",
        "\\x",
        "{{ $json.id }}",
        "\"",
        "\n",
        "é🔑",
        "a",
    ];
    let controls: String = (0..=0x1f_u8).map(char::from).chain(['\u{7f}', '\u{85}']).collect();
    let nasty = [
        "\"",
        "\\",
        "\\\"",
        "\n",
        "\r\n",
        "\u{2028}",
        "\u{2029}",
        "{",
        "}",
        "{{",
        "}}",
        "]",
        ",",
        "{{secrets.V0}}",
        "\\{{secrets.V1}}",
        "\\u0000",
        "\\ud800",
        "\u{feff}",
        "🔑",
        "\u{10ffff}",
        "</script>",
        "a",
        &controls,
    ];
    let nasty: Vec<String> = nasty.iter().map(|text| (*text).to_owned()).collect();
    let value = vec(select(nasty), 1..4).prop_map(|parts| parts.concat());
    let (_edge, mut client) = edge().await;
    let cases = samples((vec(value, 4), vec(document(of(pieces)), 6)), 16);
    let mut references = 0;
    for (case, (values, documents)) in cases.into_iter().enumerate() {
        let workspace = format!("ws{case}");
        store(&mut client, &workspace, &values).await;
        for text in documents {
            let answer = client.render_template(render_json(&workspace, &text)).await.unwrap();
            let read: Value = serde_json::from_str(&answer.get_ref().rendered).unwrap();
            let document: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(read, rendered(document, &values), "{text} with {values:?}");
            references += answer.get_ref().used.len();
        }
    }
    assert!(references > 100, "{references}");
}

/// Values that are no label, and no common word.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[A-Za-z0-9_/+=&<>\"'~*!.() \\\\-]{8,60}",
        2 => "\\PC{8,40}",
        2 => "[a-z\u{0}-\u{1f}\u{7f}\u{2028}🔑]{8,40}",
        1 => "[a-zé\n]{9,80}",
        1 => "[ -~]{1025,1200}",
    ]
    .prop_filter("long enough without its line break", |value| value.trim_end().len() >= 8)
}

/// The answer to a text in chunks of these lengths, over and over.
async fn redacted(client: &mut Client, ws: &str, text: &[u8], cuts: &[usize]) -> Vec<u8> {
    let (mut chunks, mut rest) = (vec![], text);
    for cut in cuts.iter().cycle() {
        let (chunk, after) = rest.split_at((*cut).min(rest.len()));
        chunks.push(chunk);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    let (out, last) = redact_bytes(client, open(ws, &[]), &chunks).await.unwrap();
    assert_eq!(last.input_bytes, text.len() as u64);
    [out, format!("{:?}", last.tally.clone().unwrap()).into_bytes()].concat()
}

#[tokio::test]
async fn a_stream_comes_back_the_same_however_it_is_cut() {
    let (_edge, mut client) = edge().await;
    // Values that hold one another and repeat themselves, and parts of them.
    let overlapping =
        prop_oneof!["[ab]{8,12}", "(ab){4,12}", "a{8,40}", "[ab]{1025,1100}", value()];
    let part =
        (0..6_usize, any::<prop::sample::Index>(), any::<prop::sample::Index>(), "[ab\n]{0,9}");
    let cuts = || vec(prop_oneof![0..4_usize, 5..90_usize, 1_000..40_000_usize], 1..6);
    let case = (vec(overlapping, 5), vec(part, 0..30), vec(any::<u8>(), 0..60), cuts(), cuts());
    for (number, (values, parts, bytes, cuts, others)) in samples(case, 20).into_iter().enumerate()
    {
        let workspace = format!("ws{number}");
        store(&mut client, &workspace, &values).await;
        let mut text = bytes;
        for (which, from, to, between) in parts {
            let forms = written(&values[which % 5]);
            let form = forms[from.index(forms.len())].text.as_bytes();
            // The whole, the start or the end of it.
            let cut = to.index(form.len());
            text.extend_from_slice(match which {
                0..4 => form,
                4 => &form[..cut],
                _ => &form[cut..],
            });
            text.extend_from_slice(between.as_bytes());
        }
        let whole = redacted(&mut client, &workspace, &text, &[text.len().max(1)]).await;
        for cuts in [[&cuts[..], &[1]].concat(), [&others[..], &[7]].concat(), vec![1, 0, 2]] {
            let cut = redacted(&mut client, &workspace, &text, &cuts).await;
            assert!(cut == whole, "{cuts:?}, {values:?}: {:?}", String::from_utf8_lossy(&text));
        }
    }
}

fn contains(text: &[u8], part: &str) -> bool {
    text.windows(part.len()).any(|window| window == part.as_bytes())
}

/// All strings of a document, keys too, and its numbers.
fn strings(document: &Value, all: &mut Vec<String>) {
    match document {
        Value::String(text) => all.push(text.clone()),
        Value::Array(elements) => elements.iter().for_each(|one| strings(one, all)),
        Value::Object(members) => members.iter().for_each(|(key, one)| {
            all.push(key.clone());
            strings(one, all);
        }),
        other => all.push(other.to_string()),
    }
}

#[tokio::test]
async fn no_value_survives_in_any_listed_encoding() {
    let (_edge, mut client) = edge().await;
    let around = || of(&["x", " ", "=", "+", "-", "/", ".", "\"", "é", "0", "\n"]);
    let case = (vec(value(), 3), around(), around(), 1..300_usize);
    for (number, (values, before, after, cut)) in samples(case, 16).into_iter().enumerate() {
        let workspace = format!("ws{number}");
        store(&mut client, &workspace, &values).await;
        let forms: Vec<_> = values.iter().flat_map(|value| written(value)).collect();
        let texts: Vec<_> =
            forms.iter().map(|form| format!("{before}{}{after}", form.text)).collect();

        let log = texts.join("\n");
        let out = redacted(&mut client, &workspace, log.as_bytes(), &[cut, 40_000]).await;
        for form in &forms {
            assert!(!contains(&out, &form.secret), "{} of {values:?}", form.what);
        }

        let keys = texts.iter().enumerate().map(|(i, text)| (format!("{i}{text}"), json!(i)));
        let keys = Value::Object(keys.collect());
        for document in [json!([texts]), json!({"nested": {"log": log}}), keys] {
            let request = prepare(&workspace, &document.to_string());
            let answer = client.prepare_template(request).await.unwrap().into_inner();
            let mut left = vec![];
            strings(&serde_json::from_str(&answer.json).unwrap(), &mut left);
            left.extend(answer.pasted.iter().map(|one| one.place.clone()));
            left.extend(answer.malformed.clone());
            left.extend(answer.manifest.iter().flat_map(|one| one.places.clone()));
            let left = left.join("\u{fffd}");
            for form in &forms {
                let gone = !contains(left.as_bytes(), &form.secret);
                assert!(gone, "{} of {values:?} in {document}", form.what);
            }
        }
    }
}
