//! Calls that are refused for what they say or who says it.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use tonic::{
    Code::{
        Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied,
        ResourceExhausted, Unauthenticated,
    },
    Request,
    client::Grpc,
    metadata::MetadataValue,
};
use tonic_prost::ProstCodec;
use workflow_secrets::grpc::proto::{
    AcquireRefreshLeaseRequest, CreateSecretRequest, Credential, ListSecretUsageRequest, Owner,
    ResolveSecretsRequest, Secret, secrets_service_client::SecretsServiceClient,
};

use super::{CANARIES, Stage};
use crate::support::platform::{create, delete, list, resolve, update};

/// CreateSecretRequest whose value need not be UTF-8.
#[derive(Clone, PartialEq, prost::Message)]
struct Malformed {
    #[prost(string, tag = "1")]
    workspace: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(bytes, tag = "3")]
    value: Vec<u8>,
}

fn owner(integration: &str, connection_id: &str) -> Option<Owner> {
    let (integration, connection_id) = (integration.to_owned(), connection_id.to_owned());
    Some(Owner { integration, connection_id })
}

pub(super) async fn provoke(stage: &mut Stage) {
    for (i, canary) in CANARIES.into_iter().enumerate() {
        let workspace = format!("ws{i}");
        fields(stage, canary).await;
        sizes_and_bytes(stage, canary).await;
        rights(stage, &workspace, canary).await;
        states(stage, &workspace, canary).await;
    }
}

/// The canary as the value, and wherever it is refused.
async fn fields(stage: &mut Stage, canary: &str) {
    let (mut people, mut reader) = (stage.client("platform").await, stage.client("executor").await);
    let long = canary.repeat(50);
    // No text field of printable characters takes a control character.
    let control = format!("{canary}\u{7}");
    let (past, out_of_range) = (
        Some(Timestamp { seconds: 1, nanos: 0 }),
        Some(Timestamp { seconds: i64::MAX, nanos: -1 }),
    );
    let mut sheets = stage.client("sheets").await;
    let acquire = AcquireRefreshLeaseRequest {
        workspace: "ws0".to_owned(),
        name: "KEY".to_owned(),
        holder: canary.to_owned(),
        ..Default::default()
    };
    let refused = sheets.acquire_refresh_lease(acquire).await;
    stage.told.refused(refused, InvalidArgument, "INVALID_FIELD");
    let usage = ListSecretUsageRequest {
        workspace: "ws0".to_owned(),
        page_token: canary.to_owned(),
        ..Default::default()
    };
    let refused = people.list_secret_usage(usage).await;
    stage.told.refused(refused, InvalidArgument, "INVALID_FIELD");
    let good = || create("ws0", "FIELD", canary);
    let changes: [&dyn Fn(&mut _); 9] = [
        &|r: &mut CreateSecretRequest| canary.clone_into(&mut r.workspace),
        &|r| canary.clone_into(&mut r.name),
        &|r| r.value.clear(),
        &|r| long.clone_into(&mut r.description),
        &|r| r.owner = owner(canary, "c"),
        &|r| r.owner = owner("google_sheets", canary),
        &|r| r.expire_time = past,
        &|r| r.expire_time = out_of_range,
        &|r| canary.clone_into(&mut r.request_id),
    ];
    for change in changes {
        let mut request = good();
        change(&mut request);
        let refused = people.create_secret(request.clone()).await;
        stage.told.refused(refused, InvalidArgument, "INVALID_FIELD");
        let mut other = update("ws0", "KEY");
        other.workspace = request.workspace.clone();
        other.name = request.name.clone();
        other.value = Some(request.value.clone());
        other.description = Some(request.description.clone());
        other.owner = request.owner.clone();
        other.expire_time = request.expire_time;
        other.request_id = request.request_id.clone();
        let refused = people.update_secret(other).await;
        // For the field, or because there is no such secret.
        stage.told.keep(refused).unwrap_err();
    }
    for (workspace, name, request_id) in
        [(canary, "KEY", ""), ("ws0", canary, ""), ("ws0", "KEY", canary)]
    {
        let mut request = delete(workspace, name);
        request_id.clone_into(&mut request.request_id);
        let refused = people.delete_secret(request).await;
        stage.told.refused(refused, InvalidArgument, "INVALID_FIELD");
    }
    let mut request = list("ws0");
    canary.clone_into(&mut request.page_token);
    let refused = people.list_secrets(request).await;
    stage.told.refused(refused, InvalidArgument, "INVALID_FIELD");
    let refused = people.list_secrets(list(canary)).await;
    stage.told.refused(refused, InvalidArgument, "INVALID_FIELD");

    let credential = |secret: &str, alias: &str| Credential {
        secret: secret.to_owned(),
        alias: alias.to_owned(),
        ..Default::default()
    };
    let unknown = |uid: &str| Credential { uid: uid.to_owned(), ..credential("KEY", "a") };
    let asks: [&dyn Fn(&mut _); 6] = [
        &|r: &mut ResolveSecretsRequest| canary.clone_into(&mut r.workspace),
        &|r| r.credentials = vec![credential("KEY", canary), credential(canary, "a")],
        &|r| r.credentials = vec![credential("KEY", "a"), credential("OTHER", "a")],
        &|r| r.credentials = vec![unknown(canary)],
        &|r| control.clone_into(&mut r.workflow_id),
        &|r| control.clone_into(&mut r.run_id),
    ];
    for ask in asks {
        let mut request = resolve("ws0", &["KEY"]);
        ask(&mut request);
        let refused = reader.resolve_secrets(request).await;
        stage.told.refused(refused, InvalidArgument, "INVALID_FIELD");
    }
    let mut request = resolve("ws0", &[]);
    request.credentials = vec![credential("KEY", canary); 101];
    let refused = reader.resolve_secrets(request).await;
    stage.told.refused(refused, ResourceExhausted, "TOO_MANY_CREDENTIALS");

    // 256 characters are allowed; header values are ASCII.
    let ascii: String = canary.chars().filter(|c| (' '..='~').contains(c)).collect();
    let mut request = Request::new(good());
    let actor = MetadataValue::try_from(ascii.repeat(10)).unwrap();
    request.metadata_mut().insert("x-actor", actor);
    request.metadata_mut().insert("traceparent", MetadataValue::try_from(&ascii).unwrap());
    let refused = people.create_secret(request).await;
    stage.told.refused(refused, InvalidArgument, "INVALID_FIELD");
}

async fn sizes_and_bytes(stage: &mut Stage, canary: &str) {
    let mut people = stage.client("platform").await;
    for (len, why) in [(65_537, "VALUE_TOO_LARGE"), (300_000, "MESSAGE_TOO_LARGE")] {
        let large = canary.repeat(len / canary.len() + 1);
        let refused = people.create_secret(create("ws0", "LARGE", &large)).await;
        stage.told.refused(refused, ResourceExhausted, why);
        let mut change = update("ws0", "KEY");
        change.value = Some(large);
        let refused = people.update_secret(change).await;
        stage.told.refused(refused, ResourceExhausted, why);
    }
    let identity = stage.platform.ca.client(&["spiffe://test/platform"]);
    let channel = stage.platform.channel(&stage.replicas[0], Some(&identity)).await;
    let mut grpc = Grpc::new(channel);
    for method in ["CreateSecret", "UpdateSecret"] {
        grpc.ready().await.unwrap();
        let message = Malformed {
            workspace: "ws0".to_owned(),
            name: "BYTES".to_owned(),
            value: [canary.as_bytes(), b"\xff"].concat(),
        };
        let path = format!("/workflowsecrets.v1.SecretsService/{method}").parse().unwrap();
        let codec = ProstCodec::<Malformed, Secret>::default();
        let refused = grpc.unary(Request::new(message), path, codec).await;
        stage.told.refused(refused, InvalidArgument, "MALFORMED_MESSAGE");
    }
}

async fn rights(stage: &mut Stage, workspace: &str, canary: &str) {
    let change = |name: &str| {
        let mut change = update(workspace, name);
        change.value = Some(canary.to_owned());
        change.allow_missing = true;
        change
    };
    for caller in ["stranger", "executor", "operator", "sheets"] {
        let mut client = stage.client(caller).await;
        let refused = client.create_secret(create(workspace, "MINE", canary)).await;
        stage.told.refused(refused, PermissionDenied, "NOT_GRANTED");
        if caller != "sheets" {
            let refused = client.update_secret(change("KEY")).await;
            stage.told.refused(refused, PermissionDenied, "NOT_GRANTED");
        }
        if caller != "executor" {
            let refused = client.resolve_secrets(resolve(workspace, &["KEY"])).await;
            stage.told.refused(refused, PermissionDenied, "NOT_GRANTED");
        }
    }
    let channel = stage.platform.channel(&stage.replicas[0], None).await;
    let mut nobody = SecretsServiceClient::new(channel);
    let refused = nobody.create_secret(create(workspace, "MINE", canary)).await;
    stage.told.refused(refused, Unauthenticated, "UNAUTHENTICATED");

    let (mut people, mut sheets) = (stage.client("platform").await, stage.client("sheets").await);
    let mut request = create(workspace, "OAUTH", canary);
    request.owner = owner("google_sheets", "c1");
    stage.told.keep(sheets.create_secret(request).await).unwrap();
    for caller in ["platform", "slack"] {
        let mut client = stage.client(caller).await;
        let refused = client.update_secret(change("OAUTH")).await;
        stage.told.refused(refused, PermissionDenied, "SYSTEM_MANAGED");
    }
    let refused = people.delete_secret(delete(workspace, "OAUTH")).await;
    stage.told.refused(refused, PermissionDenied, "SYSTEM_MANAGED");
    let refused = sheets.update_secret(change("KEY")).await;
    stage.told.refused(refused, PermissionDenied, "USER_MANAGED");
}

async fn states(stage: &mut Stage, workspace: &str, canary: &str) {
    let (mut people, mut reader) = (stage.client("platform").await, stage.client("executor").await);
    let refused = people.create_secret(create(workspace, "KEY", canary)).await;
    stage.told.refused(refused, AlreadyExists, "SECRET_EXISTS");
    let mut request = create(workspace, "NEW", canary);
    request.request_id = "once".to_owned();
    let refused = people.create_secret(request).await;
    stage.told.refused(refused, InvalidArgument, "REQUEST_ID_REUSED");
    let mut change = update(workspace, "KEY");
    change.value = Some(canary.to_owned());
    canary.clone_into(&mut change.etag);
    let refused = people.update_secret(change.clone()).await;
    stage.told.refused(refused, Aborted, "ETAG_MISMATCH");
    "ABSENT".clone_into(&mut change.name);
    let refused = people.update_secret(change).await;
    stage.told.refused(refused, NotFound, "SECRET_NOT_FOUND");

    // 4 secrets are allowed; KEY and OAUTH are there.
    let mut request = create(workspace, "EXPIRES", canary);
    let soon = SystemTime::now() + Duration::from_secs(1);
    request.expire_time = Some(soon.into());
    stage.told.keep(people.create_secret(request).await).unwrap();
    stage.told.keep(people.create_secret(create(workspace, "LAST", canary)).await).unwrap();
    let refused = people.create_secret(create(workspace, "MORE", canary)).await;
    stage.told.refused(refused, ResourceExhausted, "QUOTA_EXCEEDED");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for names in [&["KEY", "ABSENT"][..], &["KEY", "EXPIRES"]] {
        let refused = reader.resolve_secrets(resolve(workspace, names)).await;
        stage.told.refused(refused, FailedPrecondition, "SECRETS_UNRESOLVED");
    }
}
