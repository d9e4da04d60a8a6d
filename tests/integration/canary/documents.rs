//! Documents and streams that hold values, those that refer to them, and all
//! the ways in which they are refused.

use std::time::{Duration, SystemTime};

use futures_util::stream;
use tonic::{
    Code::{
        self, FailedPrecondition, InvalidArgument, PermissionDenied, ResourceExhausted,
        Unauthenticated,
    },
    Response, Status,
};
use workflow_secrets::grpc::proto::{
    CheckReferencesRequest, Credential, PrepareTemplateRequest, RedactOpen, RedactRequest,
    RedactResponse, RenderTemplateRequest, check_references_request::Template as ToCheck,
    render_template_request::Template as ToRender, secrets_service_client::SecretsServiceClient,
};

use super::{CANARIES, Stage, Told, streams};
use crate::support::{
    documents::{check_json, chunk, credentials, open, opening, prepare, render_json, render_text},
    platform::{Client, create, with},
};

/// Holds one secret of each canary, and one that expires.
pub(super) const WS: &str = "documents";

/// All four calls: render, check, prepare, redact.
const ALL: [bool; 4] = [true; 4];

pub(super) async fn provoke(stage: &mut Stage) {
    stage
        .replica(&["--max-redactions-per-minute", "1", "--max-preparations-per-minute", "1"])
        .await;
    let mut people = stage.client("platform").await;
    for (i, canary) in CANARIES.into_iter().enumerate() {
        let mut request = create(WS, &format!("KEY_{i}"), canary);
        request.description = format!("no. {i}");
        stage.told.keep(people.create_secret(request).await).unwrap();
    }
    for canary in CANARIES {
        successes(stage, canary).await;
        fields(stage, canary).await;
        no_json(stage, canary).await;
        sizes(stage, canary).await;
        references(stage, canary).await;
        streams::malformed(stage, canary).await;
        rights(stage, canary).await;
        rates(stage, canary).await;
        streams::provoke(stage, canary).await;
    }
    expired(stage).await;
}

/// The canary as plain text, and in place of a reference.
fn document(canary: &str) -> String {
    let all = ["{{secrets.KEY_0}}", "{{secrets.KEY_1}}", "{{ secrets.KEY_2 }}", canary];
    serde_json::json!({ "plain": format!("<{canary}>"), "all": all, "{{secrets.KEY_0}}": 1 })
        .to_string()
}

/// The same call of all four kinds; `open` tells what to look for in `text`.
struct Calls {
    render: RenderTemplateRequest,
    check: CheckReferencesRequest,
    prepare: PrepareTemplateRequest,
    open: RedactOpen,
    text: String,
}

impl Calls {
    fn new(workspace: &str, document: &str, text: &str) -> Self {
        Self {
            render: render_json(workspace, document),
            check: check_json(workspace, document),
            prepare: prepare(workspace, document),
            open: open(workspace, &[]),
            text: text.to_owned(),
        }
    }

    /// Makes those of the calls that are asked for; each is refused.
    async fn refused(
        self,
        told: &mut Told,
        [people, reader]: [&mut Client; 2],
        which: [bool; 4],
        code: Code,
        why: &str,
    ) {
        let [render, check, prepare, redact] = which;
        if render {
            told.refused(reader.render_template(self.render).await, code, why);
        }
        if check {
            told.refused(reader.check_references(self.check).await, code, why);
        }
        if prepare {
            told.refused(people.prepare_template(self.prepare).await, code, why);
        }
        if redact {
            let requests = [opening(self.open), chunk(self.text.as_bytes())];
            told.refused(redacted(reader, requests).await.map(Response::new), code, why);
        }
    }
}

/// The last answer of a stream, all of it in one; the rest has no values.
pub(super) async fn redacted(
    client: &mut Client,
    requests: impl IntoIterator<Item = RedactRequest, IntoIter: Send + 'static>,
) -> Result<RedactResponse, Status> {
    let mut answers = client.redact(stream::iter(requests)).await?.into_inner();
    let mut all = RedactResponse::default();
    while let Some(answer) = answers.message().await? {
        all.chunk.extend_from_slice(&answer.chunk);
        all.input_bytes = answer.input_bytes;
        all.tally = answer.tally.clone();
    }
    Ok(all)
}

pub(super) async fn clients(stage: &Stage) -> (Client, Client) {
    let large = 4 * 1024 * 1024;
    let client = async |caller| stage.client(caller).await.max_encoding_message_size(large);
    (client("platform").await, client("executor").await)
}

async fn successes(stage: &mut Stage, canary: &str) {
    let (mut people, mut reader) = clients(stage).await;
    let calls = Calls::new(WS, &document(canary), canary);
    let mut request = calls.render;
    request.credentials = credentials(&["KEY_0=a", "KEY_1=b"]);
    let answer = reader.render_template(request.clone()).await.unwrap();
    stage.told.0.extend(format!("{:?}{:?}", answer.metadata(), answer.get_ref().used).bytes());
    let rendered: serde_json::Value = serde_json::from_str(&answer.get_ref().rendered).unwrap();
    for (i, expected) in [CANARIES[0], CANARIES[1], CANARIES[2], canary].into_iter().enumerate() {
        assert_eq!(rendered["all"][i], expected);
    }
    request.template = Some(ToRender::Text(format!("{canary} {{{{secrets.KEY_1}}}}")));
    let answer = reader.render_template(request).await.unwrap();
    assert_eq!(answer.get_ref().rendered, format!("{canary} {}", CANARIES[1]));

    let checked = stage.told.keep(reader.check_references(calls.check.clone()).await).unwrap();
    assert!(checked.resolvable);
    let text = with(calls.check, |r| r.template = Some(ToCheck::Text(canary.to_owned())));
    stage.told.keep(people.check_references(text).await).unwrap();

    let prepared = stage.told.keep(people.prepare_template(calls.prepare).await).unwrap();
    assert_eq!(prepared.pasted.len(), 2);
    // In keys too: places are made of them.
    let keys = serde_json::json!({ canary: { canary: [canary] } }).to_string();
    let prepared = stage.told.keep(people.prepare_template(prepare(WS, &keys)).await).unwrap();
    assert_eq!(prepared.pasted.len(), 3);
    let request = with(prepare(WS, &keys), |r| r.strict = true);
    let refused = people.prepare_template(request).await;
    stage.told.refused(refused, FailedPrecondition, "VALUES_PASTED");

    let json = serde_json::to_string(canary).unwrap();
    let text = format!("{canary} {json} {} {canary}", hex::encode(canary));
    for size in [1, 5, text.len()] {
        let mut requests = vec![opening(open(WS, &[]))];
        requests.extend(text.as_bytes().chunks(size).map(chunk));
        let answer = redacted(&mut reader, requests).await.unwrap();
        let answer = stage.told.keep(Ok(Response::new(answer))).unwrap();
        assert!(answer.tally.clone().is_some_and(|tally| !tally.masked.is_empty()));
    }
}

/// The canary wherever a field refuses it.
async fn fields(stage: &mut Stage, canary: &str) {
    let (mut people, mut reader) = clients(stage).await;
    let control = format!("{canary}\u{7}");
    let calls = || Calls::new(WS, &document(canary), canary);
    let told = &mut stage.told;
    let clients = [&mut people, &mut reader];
    Calls::new(canary, &document(canary), canary)
        .refused(told, clients, ALL, InvalidArgument, "INVALID_FIELD")
        .await;
    let ids: [&dyn Fn(&mut Calls); 2] = [
        &|calls| {
            control.clone_into(&mut calls.render.workflow_id);
            control.clone_into(&mut calls.open.workflow_id);
        },
        &|calls| {
            control.clone_into(&mut calls.render.run_id);
            control.clone_into(&mut calls.open.run_id);
        },
    ];
    for change in ids {
        let calls = with(calls(), change);
        let clients = [&mut people, &mut reader];
        let which = [true, false, false, true];
        calls.refused(told, clients, which, InvalidArgument, "INVALID_FIELD").await;
    }
    let credential = |secret: &str, alias: &str| Credential {
        secret: secret.to_owned(),
        alias: alias.to_owned(),
        ..Default::default()
    };
    let wrong = vec![credential(canary, ""), credential("KEY_0", canary)];
    let request = with(calls().render, |r| r.credentials.clone_from(&wrong));
    told.refused(reader.render_template(request).await, InvalidArgument, "INVALID_FIELD");
    let request = with(calls().check, |r| r.credentials.clone_from(&wrong));
    let checked = told.keep(people.check_references(request).await).unwrap();
    assert!(!checked.resolvable);
    let request = with(calls().prepare, |r| r.credentials.clone_from(&wrong));
    let prepared = told.keep(people.prepare_template(request).await).unwrap();
    assert_eq!(prepared.malformed, ["credentials[0]"]);
    let mut calls = calls();
    let many = vec![credential(canary, canary); 101];
    calls.render.credentials.clone_from(&many);
    calls.check.credentials.clone_from(&many);
    calls.prepare.credentials = many;
    let clients = [&mut people, &mut reader];
    let which = [true, true, true, false];
    calls.refused(told, clients, which, ResourceExhausted, "TOO_MANY_CREDENTIALS").await;
    for (names, code, why) in
        [(101, ResourceExhausted, "TOO_MANY_REFERENCES"), (1, InvalidArgument, "INVALID_FIELD")]
    {
        let request = opening(open(WS, &vec![canary; names]));
        let refused = redacted(&mut reader, [request, chunk(canary.as_bytes())]).await;
        told.refused(refused.map(Response::new), code, why);
    }
}

/// JSON that ends, breaks or goes astray within, before and after the canary.
async fn no_json(stage: &mut Stage, canary: &str) {
    let (mut people, mut reader) = clients(stage).await;
    let whole = serde_json::json!({ canary: canary }).to_string();
    let mut broken: Vec<String> = vec![
        canary.to_owned(),
        format!("\"{canary}"),
        format!("[{canary}]"),
        format!("{{{canary}: 1}}"),
        format!("[\"{}\u{1}\"]", canary.escape_default()),
        format!("{whole}{canary}"),
        format!("[true{canary}]"),
        format!("[1{canary}]"),
        format!("[\"\\u{canary}\"]"),
        format!("[\"\\{canary}\"]"),
        format!("\u{feff}{whole}"),
        "[".repeat(129) + &whole + &"]".repeat(129),
    ];
    broken.extend(
        (1..whole.len())
            .filter(|at| whole.is_char_boundary(*at))
            .step_by(5)
            .map(|at| whole[..at].to_owned()),
    );
    for document in broken {
        let calls = Calls::new(WS, &document, canary);
        let which = [true, true, true, false];
        let clients = [&mut people, &mut reader];
        calls.refused(&mut stage.told, clients, which, InvalidArgument, "INVALID_FIELD").await;
    }
}

async fn sizes(stage: &mut Stage, canary: &str) {
    const MIB: usize = 1024 * 1024;
    let (mut people, mut reader) = clients(stage).await;
    let repeated = |bytes: usize| canary.repeat(bytes / canary.len() + 1);
    for (length, why) in [(MIB, "TEMPLATE_TOO_LARGE"), (2 * MIB, "MESSAGE_TOO_LARGE")] {
        let calls = Calls::new(WS, &repeated(length), &repeated(length));
        let which = [true, true, true, why == "MESSAGE_TOO_LARGE"];
        let clients = [&mut people, &mut reader];
        calls.refused(&mut stage.told, clients, which, ResourceExhausted, why).await;
    }
    let long = format!("long{}", canary.len());
    let secret = create(&long, "KEY", &canary.repeat(4));
    stage.told.keep(people.create_secret(secret).await).unwrap();
    let text = format!("{canary} {}", "{{secrets.KEY}}".repeat(60_000));
    let refused = reader.render_template(render_text(&long, &text)).await;
    stage.told.refused(refused, ResourceExhausted, "RENDERED_TOO_LARGE");
    let names: String = (0..101).map(|i| format!("{{{{secrets.N{i}}}}}{canary}")).collect();
    let document = serde_json::to_string(&names).unwrap();
    let calls = Calls::new(WS, &document, canary);
    let clients = [&mut people, &mut reader];
    let which = [true, true, true, false];
    calls.refused(&mut stage.told, clients, which, ResourceExhausted, "TOO_MANY_REFERENCES").await;
}

/// References that do not resolve beside those that do, and beside plain text.
async fn references(stage: &mut Stage, canary: &str) {
    let (mut people, mut reader) = clients(stage).await;
    for wrong in [
        "{{secrets.GONE}}".to_owned(),
        "{{secrets.}}".to_owned(),
        format!("{{{{secrets.{canary}}}}}"),
        format!("{{{{secrets[\"{canary}\"]}}}}"),
        format!("{{{{secrets.KEY_0{canary}}}}}"),
        format!("{{{{secrets.KEY_0 {canary}"),
    ] {
        let text = format!("{canary}{{{{secrets.KEY_0}}}}{{{{secrets.KEY_1}}}}{wrong}{canary}");
        let document = serde_json::json!({ "a": [canary, &text], "b": canary }).to_string();
        for request in [render_json(WS, &document), render_text(WS, &text)] {
            let request = with(request, |r| r.credentials = credentials(&["KEY_2", "LOST"]));
            let refused = reader.render_template(request).await;
            stage.told.refused(refused, FailedPrecondition, "SECRETS_UNRESOLVED");
        }
        let request = check_json(WS, &document);
        let checked = stage.told.keep(reader.check_references(request).await).unwrap();
        assert!(!checked.resolvable);
        let request = prepare(WS, &document);
        stage.told.keep(people.prepare_template(request).await).unwrap();
    }
    let missing = [opening(open(WS, &["KEY_0", "GONE"])), chunk(canary.as_bytes())];
    let missing = redacted(&mut reader, missing).await.map(Response::new);
    stage.told.refused(missing, FailedPrecondition, "SECRETS_UNRESOLVED");
}

async fn rights(stage: &mut Stage, canary: &str) {
    let calls = || Calls::new(WS, &document(canary), canary);
    for (caller, which) in [
        ("stranger", ALL),
        ("operator", ALL),
        ("sheets", ALL),
        ("platform", [true, false, false, true]),
        ("executor", [false, false, true, false]),
    ] {
        let mut client = stage.client(caller).await;
        let mut same = client.clone();
        let clients = [&mut client, &mut same];
        calls().refused(&mut stage.told, clients, which, PermissionDenied, "NOT_GRANTED").await;
    }
    let channel = stage.platform.channel(&stage.replicas[0], None).await;
    let mut nobody = SecretsServiceClient::new(channel);
    let mut same = nobody.clone();
    let clients = [&mut nobody, &mut same];
    calls().refused(&mut stage.told, clients, ALL, Unauthenticated, "UNAUTHENTICATED").await;
}

/// On the replica where only one call of each kind a minute is allowed.
async fn rates(stage: &mut Stage, canary: &str) {
    let replica = stage.replicas.last().unwrap();
    let mut people = stage.platform.client(replica, "platform").await;
    let mut reader = stage.platform.client(replica, "executor").await;
    // The first of each, whichever canary it is, passes.
    let _ = stage.told.keep(people.prepare_template(prepare(WS, &document(canary))).await);
    let requests = [opening(open(WS, &[])), chunk(canary.as_bytes())];
    let _ = redacted(&mut reader, requests).await;
    let which = [false, false, true, true];
    let calls = Calls::new(WS, &document(canary), canary);
    let clients = [&mut people, &mut reader];
    calls.refused(&mut stage.told, clients, which, ResourceExhausted, "RATE_LIMITED").await;
}

async fn expired(stage: &mut Stage) {
    let (mut people, mut reader) = clients(stage).await;
    let mut request = create(WS, "EXPIRES", CANARIES[0]);
    request.expire_time = Some((SystemTime::now() + Duration::from_secs(1)).into());
    stage.told.keep(people.create_secret(request).await).unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let text = format!("{}{{{{secrets.KEY_0}}}}{{{{secrets.EXPIRES}}}}", CANARIES[1]);
    let refused = reader.render_template(render_text(WS, &text)).await;
    stage.told.refused(refused, FailedPrecondition, "SECRETS_UNRESOLVED");
}

/// The same calls while something below them fails.
pub(super) async fn failing(
    told: &mut Told,
    clients: [&mut Client; 2],
    workspace: &str,
    canary: &str,
    code: Code,
    why: &str,
) {
    let text = format!("{canary}{{{{secrets.KEY}}}}");
    let document = serde_json::json!([text, canary]).to_string();
    let calls = Calls::new(workspace, &document, canary);
    // Check opens nothing: only the store and the audit stream matter to it.
    let check = ["STORE_UNAVAILABLE", "AUDIT_UNAVAILABLE"].contains(&why);
    calls.refused(told, clients, [true, check, true, true], code, why).await;
}
