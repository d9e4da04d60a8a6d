//! PrepareTemplate: nothing of a workspace's values leaves with a template.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use tonic::Code;
use workflow_secrets::grpc::proto::{
    self, ManagedBy, Owner, PastedValue, ValueEncoding as Encoding,
};

use super::support::{
    documents::{credentials, prepare, violations},
    platform::{Client, Platform, Replica, assert_refused, create, update, with},
    redis_server::Options,
};

const WS: &str = "ws";
const KEY: &str = "sk_live_51H8wJqKZvFm0pXb";
const ODD: &str = "pa\"ss/wörd & more?";

async fn stage(flags: &[&str]) -> (Platform, Replica, Client) {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica_with(flags).await;
    let mut people = platform.client(&replica, "platform").await;
    let described = with(create(WS, "STRIPE_KEY", KEY), |r| {
        r.description = format!("Payments; was {KEY} once");
    });
    people.create_secret(described).await.unwrap();
    people.create_secret(create(WS, "ODD", ODD)).await.unwrap();
    people.create_secret(create(WS, "NUMBER", "4242424242424242")).await.unwrap();
    people.create_secret(create(WS, "PIN", "1234")).await.unwrap();
    let mut sheets = platform.client(&replica, "sheets").await;
    let owner = Owner { integration: "google_sheets".into(), connection_id: "conn".into() };
    let owned = with(create(WS, "SHEETS_TOKEN", "ya29.a0AfH6SMBx"), |r| r.owner = Some(owner));
    sheets.create_secret(owned).await.unwrap();
    (platform, replica, people)
}

fn told(pasted: &[PastedValue]) -> Vec<(&str, &str, Encoding)> {
    pasted.iter().map(|one| (one.place.as_str(), one.name.as_str(), one.encoding())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_go_references_stay_and_a_manifest_tells_what_is_needed() {
    let (_platform, replica, mut people) = stage(&[]).await;
    let basic = STANDARD.encode(format!("user:{KEY}"));
    let inside = URL_SAFE_NO_PAD.encode(format!("{{\"k\":\"{KEY}\"}}"));
    let nested = serde_json::to_string(&json!({ "p": ODD })).unwrap();
    let workflow = json!({
        "raw": format!("Bearer {KEY}!"),
        "keep": "{{secrets.SHEETS_TOKEN}} {{ $json.id }}",
        "basic": format!("Basic {basic}"),
        "inside": format!("x={inside}&y"),
        "hex": KEY.bytes().map(|byte| format!("{byte:02X}")).collect::<String>(),
        "url": "q=pa%22ss%2Fw%C3%B6rd%20%26%20more%3F",
        "nested": nested,
        "odd": ODD,
        (KEY): 1,
        "number": 4_242_424_242_424_242_u64,
        "pin": "1234",
        "other": "{{secrets.UNKNOWN}} {{secrets.}}",
    });
    let mut request = prepare(WS, &serde_json::to_string_pretty(&workflow).unwrap());
    request.credentials = credentials(&["STRIPE_KEY=k", "no-name"]);
    let answer = people.prepare_template(request.clone()).await.unwrap().into_inner();
    let sanitized: Value = serde_json::from_str(&answer.json).unwrap();
    let expected = json!({
        "raw": "Bearer {{secrets.STRIPE_KEY}}!",
        "keep": "{{secrets.SHEETS_TOKEN}} {{ $json.id }}",
        "basic": "Basic <<basic of secrets.STRIPE_KEY>>",
        "inside": "x=<<base64 of secrets.STRIPE_KEY>>&y",
        "hex": "<<hex of secrets.STRIPE_KEY>>",
        "url": "q=<<url of secrets.ODD>>",
        "nested": "{\"p\":\"<<json of secrets.ODD>>\"}",
        "odd": "{{secrets.ODD}}",
        "{{secrets.STRIPE_KEY}}": 1,
        "number": "{{secrets.NUMBER}}",
        "pin": "1234",
        "other": "{{secrets.UNKNOWN}} {{secrets.}}",
    });
    assert_eq!(sanitized, expected);
    let mut pasted = told(&answer.pasted);
    pasted.sort_unstable_by_key(|(place, ..)| *place);
    let mut expected = [
        ("/raw", "STRIPE_KEY", Encoding::Raw),
        ("/basic", "STRIPE_KEY", Encoding::Basic),
        ("/hex", "STRIPE_KEY", Encoding::Hex),
        ("/inside", "STRIPE_KEY", Encoding::Base64),
        ("/nested", "ODD", Encoding::Json),
        ("/number", "NUMBER", Encoding::Raw),
        ("/odd", "ODD", Encoding::Raw),
        ("/{{secrets.STRIPE_KEY}} (key)", "STRIPE_KEY", Encoding::Raw),
        ("/url", "ODD", Encoding::Url),
    ];
    expected.sort_unstable_by_key(|(place, ..)| *place);
    assert_eq!(pasted, expected);
    assert_eq!(answer.malformed, ["/other", "credentials[1]"]);

    let manifest: Vec<_> = answer
        .manifest
        .iter()
        .map(|one| (&*one.name, &*one.description, one.managed_by(), &*one.integration))
        .collect();
    let expected = [
        ("NUMBER", "", ManagedBy::User, ""),
        ("ODD", "", ManagedBy::User, ""),
        ("SHEETS_TOKEN", "", ManagedBy::System, "google_sheets"),
        ("STRIPE_KEY", "Payments; was {{secrets.STRIPE_KEY}} once", ManagedBy::User, ""),
        ("UNKNOWN", "", ManagedBy::Unspecified, ""),
    ];
    assert_eq!(manifest, expected);
    assert_eq!(
        answer.manifest[3].places,
        ["/raw", "/{{secrets.STRIPE_KEY}} (key)", "credentials[0]"]
    );

    // What was found is on record.
    let lines = replica.audit();
    let lines: Vec<_> = lines.iter().filter(|line| line["action"] == "prepare").collect();
    let found: Vec<_> =
        lines.iter().map(|l| (&l["outcome"], &l["secret"], &l["matches"])).collect();
    let (ok, found_word, none) = (json!("ok"), json!("found"), Value::Null);
    assert_eq!(
        found,
        [
            (&ok, &none, &none),
            (&found_word, &json!("NUMBER"), &json!(1)),
            (&found_word, &json!("ODD"), &json!(3)),
            (&found_word, &json!("STRIPE_KEY"), &json!(5)),
        ]
    );

    // Strict fails, and says where; what is clean passes.
    request.strict = true;
    let refused = people.prepare_template(request.clone()).await;
    let status = assert_refused(refused, Code::FailedPrecondition, "VALUES_PASTED");
    let all = violations(&status);
    assert_eq!(all.len(), 9);
    assert!(all.contains(&("RAW".into(), "STRIPE_KEY".into(), "/raw".into())));
    // Not even in the place of a key.
    assert!(!format!("{all:?} {}", status.message()).contains(KEY));
    let found = replica.audit().iter().filter(|line| line["outcome"] == "found").count();
    assert_eq!(found, 6, "also of a call that fails");
    request.json = answer.json.clone();
    let again = people.prepare_template(request).await.unwrap().into_inner();
    assert_eq!((again.json.clone(), again.pasted.len()), (answer.json.clone(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_value_is_what_is_looked_for_on_every_replica() {
    let (platform, replica, mut people) = stage(&[]).await;
    let other = platform.replica().await;
    let mut others = platform.client(&other, "platform").await;
    let request = |text: &str| prepare(WS, &json!([text]).to_string());
    let found =
        |answer: tonic::Response<proto::PrepareTemplateResponse>| answer.get_ref().pasted.len();
    for value in ["first-value-1", "second-value-2", "third-value-3"] {
        let change = with(update(WS, "ODD"), |r| r.value = Some(value.to_owned()));
        people.update_secret(change).await.unwrap();
        for client in [&mut people, &mut others] {
            assert_eq!(found(client.prepare_template(request(value)).await.unwrap()), 1);
            assert_eq!(found(client.prepare_template(request(ODD)).await.unwrap()), 0);
        }
    }
    drop(replica);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_platform_prepares_and_not_without_end() {
    let (platform, replica, mut people) = stage(&["--max-preparations-per-minute", "3"]).await;
    let request = || prepare(WS, "{}");
    for caller in ["executor", "operator", "sheets", "stranger"] {
        let mut client = platform.client(&replica, caller).await;
        let refused = client.prepare_template(request()).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_GRANTED");
    }
    for _ in 0..3 {
        people.prepare_template(request()).await.unwrap();
    }
    let refused = people.prepare_template(request()).await;
    let status = assert_refused(refused, Code::ResourceExhausted, "RATE_LIMITED");
    let details = tonic_types::StatusExt::get_error_details(&status);
    let delay = details.retry_info().unwrap().retry_delay.unwrap();
    assert!((1..=20).contains(&delay.as_secs()), "{delay:?}");
    let answer = people.prepare_template(prepare("other", "{}")).await.unwrap();
    assert_eq!(answer.get_ref().json, "{}", "other workspaces have a rate of their own");
}
