//! Usage as running replicas write it.

use std::time::{Duration, Instant};

use tonic::Code;
use workflow_secrets::grpc::proto::{
    ListSecretUsageRequest, ResolveSecretsRequest, Secret, SecretUsage,
};

use super::support::{
    documents::render_text,
    platform::{Client, Platform, assert_refused, create, get, list, reason, resolve},
};

const WS: &str = "ws";

/// What is promised, and more for a busy machine.
const SOON: Duration = Duration::from_secs(10 + 5);

fn run_of(workflow: &str, names: &[&str]) -> ResolveSecretsRequest {
    ResolveSecretsRequest { workflow_id: workflow.to_owned(), ..resolve(WS, names) }
}

async fn usage(client: &mut Client, name: &str) -> Vec<SecretUsage> {
    let request = ListSecretUsageRequest {
        workspace: WS.to_owned(),
        name: name.to_owned(),
        ..Default::default()
    };
    client.list_secret_usage(request).await.unwrap().into_inner().usages
}

fn workflows(usage: &SecretUsage) -> Vec<&str> {
    usage.workflows.iter().map(|workflow| workflow.workflow_id.as_str()).collect()
}

async fn found(client: &mut Client, name: &str) -> Secret {
    client.get_secret(get(WS, name)).await.unwrap().into_inner()
}

#[tokio::test]
async fn usage_is_seen_on_every_replica_and_outlives_them() {
    let platform = Platform::start().await;
    let quota = ["--max-secrets-per-workspace", "2"];
    let mut replicas = [platform.replica_with(&quota).await, platform.replica_with(&quota).await];
    let mut people = platform.client(&replicas[0], "platform").await;
    let mut operator = platform.client(&replicas[1], "operator").await;
    let mut runs = [
        platform.client(&replicas[0], "executor").await,
        platform.client(&replicas[1], "executor").await,
    ];
    let created = people.create_secret(create(WS, "A", "value")).await.unwrap().into_inner();
    assert_eq!(created.last_resolve_time, None);

    let start = Instant::now();
    let before = std::time::SystemTime::now();
    for (run, workflow) in runs.iter_mut().zip(["wf-1", "wf-2"]) {
        run.resolve_secrets(run_of(workflow, &["A"])).await.unwrap();
        let outcome = run.resolve_secrets(run_of(workflow, &["A", "TYPO"])).await;
        assert_refused(outcome, Code::FailedPrecondition, "SECRETS_UNRESOLVED");
    }
    let after = std::time::SystemTime::now();
    loop {
        let of_both = usage(&mut operator, "A").await;
        if workflows(&of_both[0]) == ["wf-1", "wf-2"] {
            break;
        }
        assert!(start.elapsed() < SOON, "{of_both:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let secret = found(&mut operator, "A").await;
    let last = std::time::SystemTime::try_from(secret.last_resolve_time.unwrap()).unwrap();
    assert!(before <= last && last <= after);
    let listed = people.list_secrets(list(WS)).await.unwrap().into_inner().secrets;
    assert_eq!(listed, [secret]);
    let wanted = usage(&mut people, "").await;
    assert_eq!(wanted.len(), 1);
    assert_eq!((wanted[0].name.as_str(), wanted[0].missing), ("TYPO", true));
    assert_eq!(workflows(&wanted[0]), ["wf-1", "wf-2"]);

    // None of it counts as a secret.
    people.create_secret(create(WS, "B", "value")).await.unwrap();
    let outcome = people.create_secret(create(WS, "C", "value")).await;
    assert_refused(outcome, Code::ResourceExhausted, "QUOTA_EXCEEDED");

    // An orderly end writes what was noted a moment ago.
    runs[0].resolve_secrets(run_of("wf-last", &["A", "B"])).await.unwrap();
    replicas[0].terminate();
    assert!(replicas[0].ended(Duration::from_secs(10)).await.success());
    assert_eq!(workflows(&usage(&mut operator, "B").await[0]), ["wf-last"]);
    // And a crash loses nothing that was written.
    replicas[1].kill9();
    let replica = platform.replica().await;
    let mut operator = platform.client(&replica, "operator").await;
    assert_eq!(workflows(&usage(&mut operator, "A").await[0]), ["wf-1", "wf-2", "wf-last"]);

    let lines = replica.audit();
    let line = lines.last().unwrap();
    assert_eq!((&line["action"], &line["outcome"]), (&"list_usage".into(), &"ok".into()));
    assert_eq!(line["secret"], "A");
}

#[tokio::test]
async fn bad_fields_are_named() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut operator = platform.client(&replica, "operator").await;
    for (name, page_size, page_token) in [("9", 0, ""), ("", -1, ""), ("", 0, "x"), ("A", 0, "x")] {
        let request = ListSecretUsageRequest {
            workspace: WS.to_owned(),
            name: name.to_owned(),
            page_size,
            page_token: page_token.to_owned(),
        };
        let status = operator.list_secret_usage(request).await.unwrap_err();
        assert_eq!(reason(&status), (Code::InvalidArgument, "INVALID_FIELD".to_owned()));
    }
}

#[tokio::test]
async fn a_render_counts_as_use_of_what_its_document_names() {
    let platform = Platform::start().await;
    let replica = platform.replica().await;
    let mut people = platform.client(&replica, "platform").await;
    let mut run = platform.client(&replica, "executor").await;
    people.create_secret(create(WS, "A", "value")).await.unwrap();
    run.render_template(render_text(WS, "{{secrets.A}}")).await.unwrap();
    let start = Instant::now();
    while workflows(&usage(&mut people, "A").await[0]) != ["wf-1"] {
        assert!(start.elapsed() < SOON, "not recorded");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(found(&mut people, "A").await.last_resolve_time.is_some());
}
