//! Ways to learn of values past the audit stream, or to get one into an error,
//! through documents; and what may not break them.

use std::io::pipe;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tonic::Code;
use workflow_secrets::grpc::ServerConfig;

use super::support::{
    documents::{prepare, violations},
    edge::{CALLER, Edge},
    platform::{Client, Platform, assert_refused, assert_unavailable, create, resolve},
    redis_server::Options,
};

const WS: &str = "ws";
const KEY: &str = "sk_live_51H8wJqKZvFm0pXb";

async fn stage() -> (Edge, Client) {
    let edge = Edge::start(ServerConfig::default()).await;
    let mut client = edge.client(CALLER).await;
    client.create_secret(create(WS, "STRIPE_KEY", KEY)).await.unwrap();
    (edge, client)
}

fn found(edge: &Edge) -> usize {
    let lines = String::from_utf8(edge.audit.lock().unwrap().clone()).unwrap();
    lines.matches("\"found\"").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guess_that_makes_the_result_too_large_is_on_record() {
    let (edge, mut client) = stage().await;
    let name = "N".repeat(128);
    client.create_secret(create(WS, &name, "hunter22")).await.unwrap();
    // With the reference in place of the value, it has more than 1 MiB.
    let padding = "x".repeat(1024 * 1024 - 100);
    for (guess, finds) in [("hunter21", 0), ("hunter22", 1)] {
        let outcome = client.prepare_template(prepare(WS, &json!([padding, guess]).to_string()));
        match (outcome.await, finds) {
            (Ok(answer), 0) => assert!(answer.get_ref().pasted.is_empty()),
            (outcome, _) => {
                assert_refused(outcome, Code::ResourceExhausted, "RENDERED_TOO_LARGE");
            }
        }
        assert_eq!(found(&edge), finds, "{guess}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_in_a_key_comes_back_in_no_place_and_no_error() {
    let (_edge, mut client) = stage().await;
    let template = json!({ "headers": { (KEY): [1, KEY] } }).to_string();
    let mut request = prepare(WS, &template);
    let answer = client.prepare_template(request.clone()).await.unwrap().into_inner();
    let places: Vec<_> = answer.pasted.iter().map(|one| one.place.as_str()).collect();
    let expected = ["/headers/{{secrets.STRIPE_KEY}} (key)", "/headers/{{secrets.STRIPE_KEY}}/1"];
    assert_eq!(places, expected);
    assert_eq!(answer.manifest[0].places, expected);
    request.strict = true;
    let refused = client.prepare_template(request).await;
    let status = assert_refused(refused, Code::FailedPrecondition, "VALUES_PASTED");
    let told: Vec<_> = violations(&status).into_iter().map(|(_, _, place)| place).collect();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_is_not_told_while_it_cannot_be_recorded() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let mut people = platform.client(&replica, "platform").await;
    people.create_secret(create(WS, "STRIPE_KEY", KEY)).await.unwrap();
    let (reader, stdout) = pipe().unwrap();
    let replica = platform.replica_to(stdout).await;
    let mut people = platform.client(&replica, "platform").await;
    let mut executor = platform.client(&replica, "executor").await;
    executor.resolve_secrets(resolve(WS, &["STRIPE_KEY"])).await.unwrap();
    drop(reader);
    let mut request = prepare(WS, &json!([KEY]).to_string());
    request.strict = true;
    assert_unavailable(people.prepare_template(request).await, "AUDIT_UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_stay_whatever_values_look_like_parts_of_them() {
    let (_edge, mut client) = stage().await;
    for (name, value) in [("A", "STRIPE_KEY"), ("B", "{{secrets."), ("C", "{{secrets.STRIPE_KEY}}")]
    {
        client.create_secret(create(WS, name, value)).await.unwrap();
    }
    let mut request = prepare(WS, "");
    for (before, after) in [
        (r#"["{{secrets.STRIPE_KEY}}", "x{{ secrets.STRIPE_KEY }}{{secrets.A}}"]"#, None),
        (
            r#"{"{{secrets.STRIPE_KEY}}": "STRIPE_KEY"}"#,
            Some(r#"{"{{secrets.STRIPE_KEY}}": "{{secrets.A}}"}"#),
        ),
        (r#"["\\{{secrets.STRIPE_KEY}}"]"#, Some(r#"["\\\\{{secrets.C}}"]"#)),
    ] {
        request.json = before.to_owned();
        let answer = client.prepare_template(request.clone()).await.unwrap().into_inner();
        assert_eq!(answer.json, after.unwrap_or(before));
        assert_eq!((answer.pasted.len(), answer.malformed.len()), (after.iter().count(), 0));
    }
    // A value that somebody took for a name goes.
    request.json = json!([format!("{{{{secrets.{KEY}}}}}")]).to_string();
    let answer = client.prepare_template(request).await.unwrap().into_inner();
    assert!(!answer.json.contains(KEY), "{}", answer.json);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_less_than_8_bytes_can_be_guessed() {
    let (_edge, mut client) = stage().await;
    // Wrapped at 64 columns, its base64 has a second line that stands for 6 bytes.
    let value: String = (0..54).map(|n| char::from(b'A' + n % 26)).collect();
    client.create_secret(create(WS, "LONG", &value)).await.unwrap();
    let lines = STANDARD.encode(&value);
    let (first, second) = lines.split_at(64);
    assert_eq!(second.len(), 8);
    for (guess, finds) in [(second, 0), (first, 1)] {
        let answer = client.prepare_template(prepare(WS, &json!([guess]).to_string()));
        assert_eq!(answer.await.unwrap().get_ref().pasted.len(), finds, "{guess}");
    }
}
