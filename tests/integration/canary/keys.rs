//! Data keys are rotated, replaced, wrapped anew and destroyed.

use prost::Message;
use tonic::{Code, Response, Status, Streaming};
use workflow_secrets::grpc::proto::{
    DescribeWorkspaceKeysRequest, ReencryptWorkspaceRequest, RewrapDataKeysRequest,
    RotateDataKeyRequest, ShredWorkspaceRequest,
};

use super::{CANARIES, Stage, Told, create, resolve, update, value};

/// Keeps every step; there is at least one.
async fn keep<T: Message>(told: &mut Told, outcome: Result<Response<Streaming<T>>, Status>) {
    let mut steps = outcome.unwrap().into_inner();
    let mut count = 0;
    while let Some(step) = steps.message().await.transpose() {
        told.keep(step.map(Response::new)).unwrap();
        count += 1;
    }
    assert!(count > 0);
}

/// In a workspace of its own, which is gone afterwards.
pub(super) async fn provoke(stage: &mut Stage) {
    let workspace = || "keys".to_owned();
    let mut people = stage.client("platform").await;
    let mut reader = stage.platform.client(&stage.replicas[1], "executor").await;
    let mut operator = stage.platform.key_client(&stage.replicas[0], "operator").await;
    let mut request = create("keys", "KEY", CANARIES[0]);
    request.description = "of keys".to_owned();
    request.request_id = "once".to_owned();
    stage.told.keep(people.create_secret(request).await).unwrap();
    for canary in CANARIES {
        let request = RotateDataKeyRequest { workspace: workspace(), ..Default::default() };
        stage.told.keep(operator.rotate_data_key(request).await).unwrap();
        let mut change = update("keys", "KEY");
        change.value = Some(canary.to_owned());
        stage.told.keep(people.update_secret(change).await).unwrap();
    }
    let request = ReencryptWorkspaceRequest { workspace: workspace(), forget_requests: true };
    keep(&mut stage.told, operator.reencrypt_workspace(request).await).await;
    let request = RewrapDataKeysRequest { workspace: workspace(), ..Default::default() };
    keep(&mut stage.told, operator.rewrap_data_keys(request).await).await;
    let request = DescribeWorkspaceKeysRequest { workspace: workspace() };
    let keys = stage.told.keep(operator.describe_workspace_keys(request).await).unwrap();
    assert_eq!(keys.keys.len(), 1);
    let answer = reader.resolve_secrets(resolve("keys", &["KEY@1=a", "KEY=b"])).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!(["a", "b"].map(|k| value(&answer, k)), [CANARIES[0], CANARIES[2]]);
    // The key of what it holds is gone.
    let mut again = create("keys", "KEY", CANARIES[0]);
    again.description = "of keys".to_owned();
    again.request_id = "once".to_owned();
    let outcome = people.create_secret(again).await;
    stage.told.refused(outcome, Code::InvalidArgument, "REQUEST_ID_REUSED");

    let request = ShredWorkspaceRequest { workspace: workspace(), confirm: "no".to_owned() };
    let outcome = operator.shred_workspace(request).await;
    stage.told.refused(outcome, Code::InvalidArgument, "INVALID_FIELD");
    let request = ShredWorkspaceRequest { workspace: workspace(), confirm: workspace() };
    stage.told.keep(operator.shred_workspace(request).await).unwrap();
    let gone = (Code::FailedPrecondition, "WORKSPACE_SHREDDED");
    stage.told.refused(
        people.create_secret(create("keys", "KEY", CANARIES[1])).await,
        gone.0,
        gone.1,
    );
    stage.told.refused(reader.resolve_secrets(resolve("keys", &["KEY"])).await, gone.0, gone.1);
}
