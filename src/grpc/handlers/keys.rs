//! KeyService.

use tonic::{Request, Response, Status};

use super::Handlers;
use crate::{
    grpc::{convert::keys as convert, proto},
    service::audit::Action,
};

#[tonic::async_trait]
impl proto::key_service_server::KeyService for Handlers {
    async fn describe_workspace_keys(
        &self,
        request: Request<proto::DescribeWorkspaceKeysRequest>,
    ) -> Result<Response<proto::WorkspaceKeys>, Status> {
        self.call(
            Action::DescribeKeys,
            request,
            convert::describe,
            |secrets, caller, command| async move {
                secrets.describe_keys(&caller, command).await.map(convert::keys)
            },
        )
        .await
    }

    async fn rotate_data_key(
        &self,
        request: Request<proto::RotateDataKeyRequest>,
    ) -> Result<Response<proto::WorkspaceKeys>, Status> {
        self.call(
            Action::RotateDataKey,
            request,
            convert::rotate,
            |secrets, caller, command| async move {
                secrets.rotate_data_key(&caller, command).await.map(convert::keys)
            },
        )
        .await
    }

    async fn shred_workspace(
        &self,
        request: Request<proto::ShredWorkspaceRequest>,
    ) -> Result<Response<proto::ShredWorkspaceResponse>, Status> {
        self.call(Action::Shred, request, convert::shred, |secrets, caller, command| async move {
            secrets.shred(&caller, command).await.map(convert::shredded)
        })
        .await
    }
}
