//! CheckReferences: what a run would meet, without a value opened.

use std::time::{Duration, SystemTime};

use tonic::Code;
use workflow_secrets::grpc::proto::{
    self, CheckedReference, ManagedBy, Owner, ReferenceState as State,
};

use super::support::{
    documents::{check_json, credentials},
    platform::{Platform, assert_refused, create, with},
    redis_server::Options,
};

const WS: &str = "ws";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn told(answer: &proto::CheckReferencesResponse) -> Vec<(&str, &str, State)> {
    let one = |found: &'_ CheckedReference| found.state();
    answer.references.iter().map(|r| (r.place.as_str(), r.name.as_str(), one(r))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_reference_has_a_state_and_a_place() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let mut people = platform.client(&replica, "platform").await;
    let mut sheets = platform.client(&replica, "sheets").await;
    let expiring = |name: &str, after: Duration| {
        with(create(WS, name, "value"), |r| {
            r.expire_time = Some((SystemTime::now() + after).into())
        })
    };
    people.create_secret(create(WS, "FINE", "value")).await.unwrap();
    people.create_secret(expiring("GONE_BY", Duration::from_millis(1_500))).await.unwrap();
    people.create_secret(expiring("SOON", 3 * DAY)).await.unwrap();
    let owner = Owner { integration: "google_sheets".into(), connection_id: "conn".into() };
    let owned = with(create(WS, "TOKEN", "token"), |r| r.owner = Some(owner));
    sheets.create_secret(owned).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_600)).await;

    let json = r#"{"a": "{{secrets.FINE}} {{secrets.fine}}", "b": ["{{secrets.GONE_BY}}"],
        "{{secrets.SOON}}": "{{secrets.TOKEN}} {{secrets.}}"}"#;
    let mut request = check_json(WS, json);
    request.credentials =
        credentials(&["FINE=k", "SOON=k", "FINE=9", "no-name", "TOKEN=__proto__", "FINE"]);
    request.expiring_within_days = 3;
    let before = platform.kms.decrypts();
    let answer = people.check_references(request.clone()).await.unwrap().into_inner();
    let expected = [
        ("/a", "FINE", State::Ok),
        ("/a", "fine", State::Missing),
        ("/b/0", "GONE_BY", State::Expired),
        ("/{{secrets.SOON}} (key)", "SOON", State::Expiring),
        ("/{{secrets.SOON}}", "TOKEN", State::Ok),
        ("/{{secrets.SOON}}", "", State::Malformed),
        ("credentials[0]", "FINE", State::Ok),
        ("credentials[1]", "SOON", State::AliasDuplicate),
        ("credentials[2]", "FINE", State::AliasInvalid),
        ("credentials[3]", "", State::Malformed),
        ("credentials[4]", "TOKEN", State::AliasInvalid),
        ("credentials[5]", "FINE", State::Ok),
    ];
    assert_eq!(told(&answer), expected);
    assert!(!answer.resolvable && answer.unlisted == 0);
    let token = &answer.references[4];
    assert_eq!((token.managed_by(), &*token.integration), (ManagedBy::System, "google_sheets"));
    assert_eq!(answer.references[0].managed_by(), ManagedBy::User);
    assert_eq!(answer.references[1].managed_by(), ManagedBy::Unspecified);
    assert!(answer.references[3].expire_time.is_some());

    // Executors are told the same; nothing is opened and one line is left.
    let mut reader = platform.client(&replica, "executor").await;
    assert_eq!(reader.check_references(request.clone()).await.unwrap().into_inner(), answer);
    assert_eq!(platform.kms.decrypts(), before);
    let lines = replica.audit();
    let checks: Vec<_> = lines.iter().filter(|line| line["action"] == "check").collect();
    assert!(checks.len() == 2 && checks.iter().all(|line| line.get("secret").is_none()));
    for caller in ["operator", "sheets", "stranger"] {
        let mut client = platform.client(&replica, caller).await;
        let refused = client.check_references(request.clone()).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_GRANTED");
    }

    request.expiring_within_days = 2;
    request.template = check_json(WS, r#"["{{secrets.SOON}}"]"#).template.clone();
    request.credentials.clear();
    let answer = people.check_references(request.clone()).await.unwrap().into_inner();
    assert_eq!(told(&answer), [("/0", "SOON", State::Ok)]);
    assert!(answer.resolvable);
    request.expiring_within_days = -1;
    let refused = people.check_references(request.clone()).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    request.expiring_within_days = 0;
    request.template = None;
    let refused = people.check_references(request.clone()).await;
    assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    request.credentials = credentials(&["FINE"]);
    let answer = people.check_references(request).await.unwrap().into_inner();
    assert_eq!(told(&answer), [("credentials[0]", "FINE", State::Ok)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lists_are_cut_but_never_lose_a_fault() {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let mut people = platform.client(&replica, "platform").await;
    people.create_secret(create(WS, "FINE", "value")).await.unwrap();
    // A long path, so that places cost what they may cost.
    let key = "k".repeat(100_000);
    let fine = vec!["{{secrets.FINE}}"; 2_000];
    let json = serde_json::json!({ &key: [fine, "{{secrets.GONE}}"] }).to_string();
    let answer = people.check_references(check_json(WS, &json)).await.unwrap().into_inner();
    assert_eq!((answer.references.len(), answer.unlisted), (1_000, 1_001));
    assert_eq!(told(&answer)[0].1, "GONE");
    assert!(!answer.resolvable);
    let place = &answer.references[0].place;
    assert!(place.starts_with("/kkk") && place.ends_with('…') && place.len() < 1_100);

    let many: Vec<_> = (0..101).map(|number| format!("{{{{secrets.K{number}}}}}")).collect();
    let json = serde_json::to_string(&many).unwrap();
    let refused = people.check_references(check_json(WS, &json)).await;
    assert_refused(refused, Code::ResourceExhausted, "TOO_MANY_REFERENCES");
}
