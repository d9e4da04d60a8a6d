//! The service by hand: real grpcurl over mutual TLS, with nothing but what
//! reflection tells it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::stream;
use serde_json::{Value, json};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::support::{
    platform::{Platform, Replica, SERVICE},
    tools::{self, Ended},
};

const VALUE: &str = "sk_live_canary_4f9d";

struct Grpcurl {
    platform: Platform,
    replica: Replica,
}

impl Grpcurl {
    async fn start() -> Self {
        let platform = Platform::start().await;
        let replica = platform.replica().await;
        Self { platform, replica }
    }

    /// Runs it, with the certificate of `caller` if there is one.
    async fn run(&self, caller: Option<&str>, arguments: &[&str], stdin: &str) -> Ended {
        let file = |name: &str| self.platform.file(name).to_str().unwrap().to_owned();
        let mut all = vec!["-max-time".to_owned(), "20".to_owned()];
        all.extend(["-cacert".to_owned(), file("ca.crt")]);
        if let Some(caller) = caller {
            all.extend(["-cert".to_owned(), file(&format!("{caller}.crt"))]);
            all.extend(["-key".to_owned(), file(&format!("{caller}.key"))]);
        }
        let address = self.replica.address.to_string();
        // Flags, then the address, then what to call.
        let (flags, verb) = arguments.split_at(arguments.len() - 1);
        let verbs = verb.iter().flat_map(|verb| verb.split(' '));
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        all.extend([address].into_iter().chain(verbs.map(str::to_owned)));
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        tools::grpcurl(&all, stdin).await
    }

    /// A call of the API that succeeds; only Resolve and Render may tell
    /// the value.
    async fn call(&self, caller: &str, method: &str, request: &Value) -> Value {
        let ended = self.try_call(Some(caller), method, request).await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        serde_json::from_str(&ended.stdout).expect("JSON")
    }

    /// A call of the API that fails: its code, and all that was printed.
    async fn refused(&self, caller: Option<&str>, method: &str, request: &Value) -> (i32, String) {
        let ended = self.try_call(caller, method, request).await;
        assert_eq!(ended.stdout, "");
        // grpcurl adds 64 to the code.
        (ended.code.unwrap() - 64, ended.stderr)
    }

    async fn try_call(&self, caller: Option<&str>, method: &str, request: &Value) -> Ended {
        let method = format!("{SERVICE}/{method}");
        let ended = self.run(caller, &["-d", "@", &method], &request.to_string()).await;
        let told = ended.stdout.contains(VALUE) || ended.stderr.contains(VALUE);
        let may = ["/ResolveSecrets", "/RenderTemplate"].iter().any(|end| method.ends_with(end));
        assert!(!told || may && ended.code == Some(0), "{method} told the value");
        ended
    }
}

const KEY_SERVICE: &str = "workflowsecrets.v1.KeyService";

/// Codes of gRPC.
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const FAILED_PRECONDITION: i32 = 9;
const UNAUTHENTICATED: i32 = 16;

#[tokio::test]
async fn a_tour_of_every_call() {
    let grpcurl = Grpcurl::start().await;

    let request = json!({
        "workspace": "ws_1", "name": "STRIPE_KEY", "value": VALUE, "description": "Billing",
        "request_id": "tour-1",
    });
    let created = grpcurl.call("platform", "CreateSecret", &request).await;
    assert_eq!(created["name"], "STRIPE_KEY");
    assert_eq!(created["managedBy"], "MANAGED_BY_USER");
    assert_eq!(created["version"], "1");
    assert_eq!(created["createdBy"], "spiffe://test/platform");
    assert_eq!(grpcurl.call("platform", "CreateSecret", &request).await, created);

    let listed = grpcurl.call("platform", "ListSecrets", &json!({"workspace": "ws_1"})).await;
    assert_eq!(listed, json!({"secrets": [created.clone()]}));
    let key = json!({"workspace": "ws_1", "name": "STRIPE_KEY"});
    assert_eq!(grpcurl.call("operator", "GetSecret", &key).await, created);

    let rotated = format!("{VALUE}-2");
    let request = json!({
        "workspace": "ws_1", "name": "STRIPE_KEY", "value": rotated, "etag": created["etag"],
    });
    let updated = grpcurl.call("platform", "UpdateSecret", &request).await;
    assert_eq!((&updated["version"], &updated["description"]), (&json!("2"), &json!("Billing")));
    assert_eq!(updated["uid"], created["uid"]);

    let request = json!({
        "workspace": "ws_1",
        "credentials": [{"secret": "STRIPE_KEY", "alias": "stripe"}, {"secret": "STRIPE_KEY"}],
        "workflow_id": "wf-1", "run_id": "run-1",
    });
    let resolved = grpcurl.call("executor", "ResolveSecrets", &request).await;
    let uid = &created["uid"];
    let secret = json!({"name": "STRIPE_KEY", "value": rotated, "version": "2", "uid": uid});
    assert_eq!(resolved, json!({"secrets": {"stripe": secret, "STRIPE_KEY": secret}}));

    assert_eq!(grpcurl.call("platform", "DeleteSecret", &key).await, json!({}));
    let (code, told) = grpcurl.refused(Some("platform"), "GetSecret", &key).await;
    assert_eq!(code, NOT_FOUND, "{told}");
    assert_details(&told, &["ErrorInfo", "SECRET_NOT_FOUND", "ResourceInfo", "STRIPE_KEY"]);
    let (code, told) = grpcurl.refused(Some("executor"), "ResolveSecrets", &request).await;
    assert_eq!(code, FAILED_PRECONDITION, "{told}");
    assert_details(&told, &["SECRETS_UNRESOLVED", "PreconditionFailure", "MISSING"]);
}

#[tokio::test]
async fn documents_and_streams() {
    let grpcurl = Grpcurl::start().await;
    let secret = json!({"workspace": "ws_1", "name": "KEY", "value": VALUE});
    grpcurl.call("platform", "CreateSecret", &secret).await;

    let template = "{\"auth\": \"Bearer {{secrets.KEY}}\", \"n\": 1.50}";
    let request = json!({
        "workspace": "ws_1", "json": template, "credentials": [{"secret": "KEY", "alias": "k"}],
        "run_id": "run-1",
    });
    let answer = grpcurl.call("executor", "RenderTemplate", &request).await;
    let rendered = template.replace("{{secrets.KEY}}", VALUE);
    let expected = json!({
        "rendered": rendered, "contextSecrets": {"k": VALUE},
        "used": [{"name": "KEY", "version": "1"}],
    });
    assert_eq!(answer, expected);
    let request = json!({"workspace": "ws_1", "text": format!("{VALUE}\n{{{{secrets.GONE}}}}")});
    let (code, told) = grpcurl.refused(Some("executor"), "RenderTemplate", &request).await;
    assert_eq!(code, FAILED_PRECONDITION, "{told}");
    assert_details(&told, &["SECRETS_UNRESOLVED", "MISSING", "GONE", "2:1"]);

    let request = json!({"workspace": "ws_1", "text": "{{secrets.KEY}} {{secrets.}}"});
    let answer = grpcurl.call("platform", "CheckReferences", &request).await;
    let expected = json!([
        {"place": "1:1", "name": "KEY", "state": "REFERENCE_STATE_OK",
         "managedBy": "MANAGED_BY_USER"},
        {"place": "1:17", "state": "REFERENCE_STATE_MALFORMED"},
    ]);
    assert_eq!(answer, json!({"references": expected}));

    let workflow = json!({"key": VALUE}).to_string();
    let mut request = json!({"workspace": "ws_1", "json": workflow});
    let answer = grpcurl.call("platform", "PrepareTemplate", &request).await;
    assert_eq!(answer["json"], "{\"key\":\"{{secrets.KEY}}\"}");
    let pasted = json!([{"place": "/key", "name": "KEY", "encoding": "VALUE_ENCODING_RAW"}]);
    assert_eq!(answer["pasted"], pasted);
    assert_eq!(answer["manifest"][0]["name"], "KEY");
    request["strict"] = true.into();
    let (code, told) = grpcurl.refused(Some("platform"), "PrepareTemplate", &request).await;
    assert_eq!(code, FAILED_PRECONDITION, "{told}");
    assert_details(&told, &["VALUES_PASTED", "PreconditionFailure", "RAW", "/key"]);

    // Several messages of one stream; bytes are base64 in JSON.
    let (start, end) = VALUE.as_bytes().split_at(7);
    let chunks = [[b"key=", start].concat(), [end, b"\n"].concat()];
    let mut messages = vec![json!({"open": {"workspace": "ws_1", "all_names": true}})];
    messages.extend(chunks.iter().map(|bytes| json!({"chunk": STANDARD.encode(bytes)})));
    let messages: String = messages.iter().map(Value::to_string).collect();
    let method = format!("{SERVICE}/Redact");
    let ended = grpcurl.run(Some("executor"), &["-d", "@", &method], &messages).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let answers = serde_json::Deserializer::from_str(&ended.stdout).into_iter::<Value>();
    let answers: Vec<_> = answers.map(|answer| answer.expect("JSON")).collect();
    let bytes = |answer: &Value| STANDARD.decode(answer["chunk"].as_str().unwrap_or("")).unwrap();
    let text: Vec<u8> = answers.iter().flat_map(bytes).collect();
    assert_eq!(String::from_utf8(text).unwrap(), "key={{secrets.KEY}}\n");
    let masked = json!([{"name": "KEY", "encoding": "VALUE_ENCODING_RAW", "count": "1"}]);
    let last = json!({
        "inputBytes": (VALUE.len() + 5).to_string(), "tally": {"masked": masked},
    });
    assert_eq!(answers.last(), Some(&last));
    let ended = grpcurl.run(Some("platform"), &["-d", "@", &method], &messages).await;
    assert_eq!(ended.code, Some(64 + PERMISSION_DENIED), "{}", ended.stderr);
    assert_details(&ended.stderr, &["ErrorInfo", "NOT_GRANTED"]);
}

/// The details are printed as JSON, not as bytes: reflection describes them.
#[track_caller]
fn assert_details(told: &str, parts: &[&str]) {
    let details = told.split_once("Details:").expect("details").1;
    assert!(details.contains("workflowsecrets.v1"), "{told}");
    for part in parts {
        assert!(details.contains(part), "no {part} in {told}");
    }
}

#[tokio::test]
async fn the_manager_cannot_read_nor_the_reader_manage() {
    let grpcurl = Grpcurl::start().await;
    let key = json!({"workspace": "ws_1", "name": "KEY"});
    let with = |more: Value| {
        let mut request = key.clone();
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let value = with(json!({"value": VALUE}));
    let resolve = json!({"workspace": "ws_1", "credentials": [{"secret": "KEY"}]});
    grpcurl.call("platform", "CreateSecret", &value).await;

    let workspace = json!({"workspace": "ws_1"});
    for (caller, method, request) in [
        ("platform", "ResolveSecrets", &resolve),
        ("operator", "ResolveSecrets", &resolve),
        ("executor", "CreateSecret", &value),
        ("executor", "UpdateSecret", &value),
        ("executor", "DeleteSecret", &key),
        ("executor", "GetSecret", &key),
        ("executor", "ListSecrets", &workspace),
    ] {
        let (code, told) = grpcurl.refused(Some(caller), method, request).await;
        assert_eq!(code, PERMISSION_DENIED, "{caller} {method}: {told}");
        assert_details(&told, &["ErrorInfo", "NOT_GRANTED"]);
        assert!(!told.contains(VALUE));
    }
    for (method, request) in [
        ("CreateSecret", &value),
        ("GetSecret", &key),
        ("UpdateSecret", &value),
        ("DeleteSecret", &key),
        ("ListSecrets", &workspace),
        ("ResolveSecrets", &resolve),
    ] {
        let (code, told) = grpcurl.refused(None, method, request).await;
        assert_eq!(code, UNAUTHENTICATED, "{method}: {told}");
        assert_details(&told, &["ErrorInfo", "UNAUTHENTICATED"]);
        assert!(!told.contains(VALUE));
    }
    let resolved = grpcurl.call("executor", "ResolveSecrets", &resolve).await;
    assert_eq!(resolved["secrets"]["KEY"]["value"], VALUE);
}

#[tokio::test]
async fn reflection_and_health_are_open_to_all() {
    let grpcurl = Grpcurl::start().await;
    for caller in [None, Some("stranger")] {
        let listed = grpcurl.run(caller, &["list"], "").await;
        let services: Vec<_> = listed.stdout.lines().collect();
        let expected = [
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            KEY_SERVICE,
            SERVICE,
        ];
        assert_eq!(services, expected, "{}", listed.stderr);

        let health = grpcurl.run(caller, &["grpc.health.v1.Health/Check"], "").await;
        assert!(health.stdout.contains("\"SERVING\""), "{}", health.stderr);
        for service in [SERVICE, KEY_SERVICE] {
            let service = format!(r#"{{"service": "{service}"}}"#);
            let check = ["-d", &service, "grpc.health.v1.Health/Check"];
            let health = grpcurl.run(caller, &check, "").await;
            assert!(health.stdout.contains("\"SERVING\""), "{}", health.stderr);
        }
    }

    let methods = grpcurl.run(None, &[&format!("list {SERVICE}")], "").await;
    let names = [
        "AcquireRefreshLease",
        "CheckReferences",
        "CreateSecret",
        "DeleteSecret",
        "GetSecret",
        "ListAuditEvents",
        "ListSecretUsage",
        "ListSecretVersions",
        "ListSecrets",
        "PrepareTemplate",
        "Redact",
        "ReleaseRefreshLease",
        "RenderTemplate",
        "ResolveSecrets",
        "RollbackSecret",
        "UndeleteSecret",
        "UpdateSecret",
    ];
    let names = names.map(|method| format!("{SERVICE}.{method}"));
    assert_eq!(methods.stdout.lines().collect::<Vec<_>>(), names);
    for (symbol, holds) in [
        (SERVICE, "rpc ResolveSecrets"),
        ("workflowsecrets.v1.CreateSecretRequest", "string request_id = 7"),
        ("workflowsecrets.v1.ResolvedSecret", "string value = 2"),
        ("google.rpc.ErrorInfo", "string reason = 1"),
    ] {
        let described = grpcurl.run(None, &[&format!("describe {symbol}")], "").await;
        assert!(described.stdout.contains(holds), "{} {}", described.stdout, described.stderr);
    }
    let described = grpcurl.run(None, &["describe workflowsecrets.v1.Secret"], "").await;
    assert!(described.stdout.contains("string etag = 8"), "{}", described.stdout);
    assert!(!described.stdout.contains("string value"), "{}", described.stdout);
}

/// What newer grpcurls ask first.
#[tokio::test]
async fn reflection_answers_in_its_newer_version_too() {
    let Grpcurl { platform, replica } = Grpcurl::start().await;
    let mut client = ServerReflectionClient::new(platform.channel(&replica, None).await);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut answers =
        client.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = answer else { panic!("{answer:?}") };
    let mut services: Vec<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
    services.sort_unstable();
    let expected =
        ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", KEY_SERVICE, SERVICE];
    assert_eq!(services, expected);
    assert!(answers.message().await.unwrap().is_none());
}
