//! KeyService.

use std::pin::Pin;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use super::Handlers;
use crate::{
    grpc::{convert::keys as convert, proto},
    service::{Steps, audit::Action},
};

/// The steps of a job, as tonic sends them.
type Told<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn told<S, T>(steps: Steps<S>, convert: fn(S) -> T) -> Told<T>
where
    S: Send + 'static,
    T: 'static,
{
    Box::pin(stream::unfold(steps, move |mut steps| async move {
        let step = steps.recv().await?;
        Some((step.map(convert).map_err(Status::from), steps))
    }))
}

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

    type ReencryptWorkspaceStream = Told<proto::ReencryptWorkspaceResponse>;

    async fn reencrypt_workspace(
        &self,
        request: Request<proto::ReencryptWorkspaceRequest>,
    ) -> Result<Response<Self::ReencryptWorkspaceStream>, Status> {
        self.call(
            Action::Reencrypt,
            request,
            convert::reencrypt,
            |secrets, caller, command| async move {
                let steps = secrets.reencrypt(&caller, command).await?;
                Ok(told(steps, convert::reencrypted))
            },
        )
        .await
    }

    type RewrapDataKeysStream = Told<proto::RewrapDataKeysResponse>;

    async fn rewrap_data_keys(
        &self,
        request: Request<proto::RewrapDataKeysRequest>,
    ) -> Result<Response<Self::RewrapDataKeysStream>, Status> {
        self.call(
            Action::RewrapDataKeys,
            request,
            convert::rewrap,
            |secrets, caller, command| async move {
                let steps = secrets.rewrap_data_keys(&caller, command).await?;
                Ok(told(steps, convert::rewrapped))
            },
        )
        .await
    }
}
