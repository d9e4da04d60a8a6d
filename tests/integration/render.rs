//! RenderTemplate: values in place of references, all of them or none.

use serde_json::{Value, json};
use tonic::Code;
use workflow_secrets::grpc::proto::{self, Owner};

use super::support::{
    documents::{credentials, render_json, render_text, violations},
    platform::{Client, Platform, Replica, assert_refused, create, with},
    redis_server::Options,
};

const WS: &str = "ws";

async fn stage() -> (Platform, Replica, Client, Client) {
    let platform = Platform::start_with(Options::default()).await;
    let replica = platform.replica().await;
    let people = platform.client(&replica, "platform").await;
    let reader = platform.client(&replica, "executor").await;
    (platform, replica, people, reader)
}

async fn store(client: &mut Client, secrets: &[(&str, &str)]) {
    for (name, text) in secrets {
        client.create_secret(create(WS, name, text)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_stand_in_place_of_references() {
    let (_platform, replica, mut people, mut reader) = stage().await;
    let odd = "a \"quoted\" \\ line\nand {{secrets.PLAIN}} \u{2028} } 🔑";
    store(&mut people, &[("PLAIN", "sk_test_1"), ("ODD", odd), ("ONLY", "listed")]).await;

    let template = r#"{ "h" : {"Authorization":"Bearer {{ secrets.PLAIN }}", "n": 1.50e+3},
  "{{secrets.PLAIN}}": ["{{secrets.ODD}}", "{{ $json.id }}", "\\{{secrets.PLAIN}}"] }"#;
    let mut request = render_json(WS, template);
    request.credentials = credentials(&["ONLY=k", "ODD"]);
    let answer = reader.render_template(request.clone()).await.unwrap().into_inner();
    let written = serde_json::to_string(odd).unwrap();
    let expected = format!(
        r#"{{ "h" : {{"Authorization":"Bearer sk_test_1", "n": 1.50e+3}},
  "sk_test_1": [{written}, "{{{{ $json.id }}}}", "{{{{secrets.PLAIN}}}}"] }}"#
    );
    assert_eq!(answer.rendered, expected);
    let rendered: Value = serde_json::from_str(&answer.rendered).unwrap();
    assert_eq!(rendered["sk_test_1"][0], odd);
    let context: Vec<_> = answer.context_secrets.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(context, [("ODD", odd), ("k", "listed")]);
    let used: Vec<_> = answer.used.iter().map(|used| (used.name.as_str(), used.version)).collect();
    assert_eq!(used, [("ODD", 1), ("ONLY", 1), ("PLAIN", 1)]);

    // One line per name in the document and per credential.
    let lines: Vec<_> = replica
        .audit()
        .into_iter()
        .filter(|line| line["action"] == "render")
        .map(|line| {
            assert_eq!((&line["outcome"], &line["version"]), (&json!("ok"), &json!(1)));
            assert_eq!((&line["run_id"], &line["workflow_id"]), (&json!("run-1"), &json!("wf-1")));
            (line["secret"].clone(), line["alias"].clone())
        })
        .collect();
    let expected = [
        (json!("ODD"), Value::Null),
        (json!("PLAIN"), Value::Null),
        (json!("ONLY"), json!("k")),
        (json!("ODD"), json!("ODD")),
    ];
    assert_eq!(lines, expected);

    let text = "key={{secrets.PLAIN}}\nodd={{secrets.ODD}}\n\\ {{other}}";
    let answer = reader.render_template(render_text(WS, text)).await.unwrap().into_inner();
    assert_eq!(answer.rendered, format!("key=sk_test_1\nodd={odd}\n\\ {{{{other}}}}"));

    // The next version is what the next call gets.
    let change = with(super::support::platform::update(WS, "PLAIN"), |r| {
        r.value = Some("sk_test_2".to_owned());
    });
    people.update_secret(change).await.unwrap();
    let answer = reader.render_template(render_text(WS, "{{secrets.PLAIN}}")).await.unwrap();
    assert_eq!(answer.get_ref().rendered, "sk_test_2");
    assert_eq!(answer.get_ref().used[0].version, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_of_a_hundred_names_is_one_store_read() {
    let (platform, _replica, mut people, mut reader) = stage().await;
    let names: Vec<_> = (0..100).map(|number| format!("KEY_{number}")).collect();
    for name in &names {
        people.create_secret(create(WS, name, &format!("value of {name}"))).await.unwrap();
    }
    let document: Vec<_> = names.iter().map(|name| format!("{{{{secrets.{name}}}}}")).collect();
    let mut request = render_json(WS, &serde_json::to_string(&document).unwrap());
    let listed: Vec<_> = names.iter().map(String::as_str).collect();
    request.credentials = credentials(&listed);
    let before = platform.redis.calls("hmget");
    let answer = reader.render_template(request.clone()).await.unwrap().into_inner();
    assert_eq!(platform.redis.calls("hmget") - before, 1);
    let rendered: Vec<String> = serde_json::from_str(&answer.rendered).unwrap();
    assert_eq!((rendered.len(), &*rendered[99]), (100, "value of KEY_99"));
    assert_eq!(answer.context_secrets.len(), 100);

    request.template = render_text(WS, "{{secrets.ONE_MORE}}").template.clone();
    assert_refused(
        reader.render_template(request).await,
        Code::ResourceExhausted,
        "TOO_MANY_REFERENCES",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_is_wrong_is_told_at_once_with_its_place() {
    let (_platform, replica, mut people, mut reader) = stage().await;
    store(&mut people, &[("HERE", "canary-value"), ("here_too", "canary-value-2")]).await;
    let template = r#"{"a/b": ["{{secrets.HERE}} {{secrets.GONE}}", {"x": "{{secrets.A-B}}"}],
        "{{secrets.GONE}}": "{{secrets.HERE_TOO}}", "\u007b{secrets}}": 1}"#;
    let mut request = render_json(WS, template);
    request.credentials = credentials(&["HERE", "LOST=l"]);
    let refused = reader.render_template(request).await;
    let status = assert_refused(refused, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
    let told = violations(&status);
    let told: Vec<_> = told.iter().map(|(k, s, d)| (&**k, &**s, &**d)).collect();
    let expected = [
        ("MISSING", "GONE", "/a~1b/0"),
        ("MALFORMED", "", "/a~1b/1/x"),
        ("MISSING", "GONE", "/{{secrets.GONE}} (key)"),
        ("MISSING", "HERE_TOO", "/{{secrets.GONE}}"),
        ("MALFORMED", "", "/{{secrets}} (key)"),
        ("MISSING", "LOST", "credentials[1]"),
    ];
    assert_eq!(told, expected);
    assert!(!format!("{status:?}").contains("canary-value"));
    let outcomes: Vec<_> = replica.audit().iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes[2..], vec![json!("SECRETS_UNRESOLVED"); 5]);

    let refused = reader.render_template(render_text(WS, "one\nZoë {{secrets.GONE}}")).await;
    let status = assert_refused(refused, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
    assert_eq!(violations(&status), [("MISSING".into(), "GONE".into(), "2:5".into())]);
    assert!(status.message().contains("GONE does not exist (at 2:5)"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_executors_render() {
    let (platform, replica, mut people, mut reader) = stage().await;
    store(&mut people, &[("KEY", "value")]).await;
    let request = || render_text(WS, "{{secrets.KEY}} {{secrets.GONE}}");
    for caller in ["platform", "operator", "sheets", "stranger"] {
        let mut client = platform.client(&replica, caller).await;
        let refused = client.render_template(request()).await;
        assert_refused(refused, Code::PermissionDenied, "NOT_GRANTED");
    }
    let lines = replica.audit();
    let refused: Vec<_> = lines.iter().filter(|line| line["action"] == "render").collect();
    assert_eq!(refused.len(), 4);
    assert!(refused.iter().all(|line| line.get("secret").is_none()));

    // Nothing to resolve still leaves a line.
    let answer = reader.render_template(render_json(WS, "{}")).await.unwrap().into_inner();
    assert_eq!((answer.rendered.as_str(), answer.used.len()), ("{}", 0));
    let last = replica.audit().pop().unwrap();
    assert_eq!((&last["action"], &last["outcome"]), (&json!("render"), &json!("ok")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_exact() {
    const MIB: usize = 1024 * 1024;
    let (_platform, _replica, mut people, reader) = stage().await;
    let mut reader = reader.max_encoding_message_size(16 * MIB);
    store(&mut people, &[("BIG", &"v".repeat(64 * 1024)), ("QUOTES", &"\"".repeat(32 * 1024))])
        .await;
    let text = |length: usize| render_text(WS, &"x".repeat(length));
    let answer = reader.render_template(text(MIB)).await.unwrap().into_inner();
    assert_eq!(answer.rendered.len(), MIB);
    let refused = |outcome, why| assert_refused(outcome, Code::ResourceExhausted, why);
    refused(reader.render_template(text(MIB + 1)).await, "TEMPLATE_TOO_LARGE");
    refused(reader.render_template(text(2 * MIB)).await, "MESSAGE_TOO_LARGE");
    // Other calls still take no large messages.
    let large = create(WS, "K", &"x".repeat(MIB / 2));
    let large = people.create_secret(large).await;
    refused(
        large.map(|answer| answer.map(|_| proto::RenderTemplateResponse::default())),
        "MESSAGE_TOO_LARGE",
    );

    // 4 MiB exactly, and one byte more.
    let full = "{{secrets.BIG}}".repeat(64);
    let answer = reader.render_template(render_text(WS, &full)).await.unwrap().into_inner();
    assert_eq!(answer.rendered.len(), 4 * MIB);
    refused(
        reader.render_template(render_text(WS, &format!("{full}."))).await,
        "RENDERED_TOO_LARGE",
    );
    let escaped = serde_json::to_string(&"{{secrets.QUOTES}}".repeat(64)).unwrap();
    refused(reader.render_template(render_json(WS, &escaped)).await, "RENDERED_TOO_LARGE");

    let nested = |depth: usize| render_json(WS, &("[".repeat(depth) + &"]".repeat(depth)));
    reader.render_template(nested(128)).await.unwrap();
    for (bad, field) in [
        (nested(129), "json"),
        (render_json(WS, r#"{"a": 01}"#), "json"),
        (render_json(WS, ""), "json"),
        (with(render_json(WS, "{}"), |r| r.template = None), "template"),
    ] {
        let status = assert_refused(
            reader.render_template(bad).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
        );
        assert!(status.message().starts_with(&format!("invalid request: {field} ")), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_and_system_managed_secrets_count_as_such() {
    let (platform, replica, _people, mut reader) = stage().await;
    let mut sheets = platform.client(&replica, "sheets").await;
    let owned = with(create(WS, "TOKEN", "ya29.token"), |r| {
        let (integration, connection_id) = ("google_sheets".to_owned(), "conn".to_owned());
        r.owner = Some(Owner { integration, connection_id });
        r.expire_time =
            Some((std::time::SystemTime::now() + std::time::Duration::from_secs(2)).into());
    });
    sheets.create_secret(owned).await.unwrap();
    let request = || render_text(WS, "{{secrets.TOKEN}}");
    assert_eq!(reader.render_template(request()).await.unwrap().get_ref().rendered, "ya29.token");
    tokio::time::sleep(std::time::Duration::from_millis(2_100)).await;
    let refused = reader.render_template(request()).await;
    let status = assert_refused(refused, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
    assert_eq!(violations(&status), [("EXPIRED".into(), "TOKEN".into(), "1:1".into())]);
}
