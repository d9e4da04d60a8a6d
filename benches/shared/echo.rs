//! What the service is compared with: a bare tonic server of the same API.

use futures_util::{future::BoxFuture, stream::Empty};
use tonic::{Request, Response, Status, Streaming};
use workflow_secrets::grpc::proto::{
    self, CreateSecretRequest, DeleteSecretRequest, GetSecretRequest, ListSecretsRequest,
    ListSecretsResponse, RenderTemplateRequest, RenderTemplateResponse, ResolveSecretsRequest,
    ResolveSecretsResponse, ResolvedSecret, Secret, UpdateSecretRequest,
    render_template_request::Template::Json, secrets_service_server::SecretsService,
};

/// A value as long as API keys are.
pub(crate) const VALUE: &str = "sk_live_51H8wJqKZvFm0pXbN2cT7";

/// What an echo does before it answers a Resolve.
pub(crate) type Before = dyn Fn(&ResolveSecretsRequest) -> BoxFuture<'static, ()> + Send + Sync;

/// Answers at once with what Resolve would.
#[derive(Default)]
pub(crate) struct Echo(pub(crate) Option<Box<Before>>);

#[tonic::async_trait]
impl SecretsService for Echo {
    async fn resolve_secrets(
        &self,
        request: Request<ResolveSecretsRequest>,
    ) -> Result<Response<ResolveSecretsResponse>, Status> {
        let request = request.into_inner();
        if let Some(before) = &self.0 {
            before(&request).await;
        }
        let credentials = request.credentials.into_iter();
        let secret = |credential: proto::Credential| {
            let value = ResolvedSecret {
                name: credential.secret.clone(),
                value: VALUE.to_owned(),
                version: 1,
                expire_time: None,
                uid: String::new(),
            };
            (credential.secret, value)
        };
        Ok(Response::new(ResolveSecretsResponse { secrets: credentials.map(secret).collect() }))
    }

    async fn create_secret(
        &self,
        _: Request<CreateSecretRequest>,
    ) -> Result<Response<Secret>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_secret(&self, _: Request<GetSecretRequest>) -> Result<Response<Secret>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn update_secret(
        &self,
        _: Request<UpdateSecretRequest>,
    ) -> Result<Response<Secret>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete_secret(&self, _: Request<DeleteSecretRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn undelete_secret(
        &self,
        _: Request<proto::UndeleteSecretRequest>,
    ) -> Result<Response<Secret>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_audit_events(
        &self,
        _: Request<proto::ListAuditEventsRequest>,
    ) -> Result<Response<proto::ListAuditEventsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn rollback_secret(
        &self,
        _: Request<proto::RollbackSecretRequest>,
    ) -> Result<Response<Secret>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_secret_versions(
        &self,
        _: Request<proto::ListSecretVersionsRequest>,
    ) -> Result<Response<proto::ListSecretVersionsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn acquire_refresh_lease(
        &self,
        _: Request<proto::AcquireRefreshLeaseRequest>,
    ) -> Result<Response<proto::RefreshLease>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn release_refresh_lease(
        &self,
        _: Request<proto::ReleaseRefreshLeaseRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_secret_usage(
        &self,
        _: Request<proto::ListSecretUsageRequest>,
    ) -> Result<Response<proto::ListSecretUsageResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_secrets(
        &self,
        _: Request<ListSecretsRequest>,
    ) -> Result<Response<ListSecretsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn render_template(
        &self,
        request: Request<RenderTemplateRequest>,
    ) -> Result<Response<RenderTemplateResponse>, Status> {
        let mut answer = RenderTemplateResponse::default();
        if let Some(Json(json)) = request.into_inner().template.take() {
            answer.rendered = json;
        }
        Ok(Response::new(answer))
    }

    async fn check_references(
        &self,
        _: Request<proto::CheckReferencesRequest>,
    ) -> Result<Response<proto::CheckReferencesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn prepare_template(
        &self,
        _: Request<proto::PrepareTemplateRequest>,
    ) -> Result<Response<proto::PrepareTemplateResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type RedactStream = Empty<Result<proto::RedactResponse, Status>>;

    async fn redact(
        &self,
        _: Request<Streaming<proto::RedactRequest>>,
    ) -> Result<Response<Self::RedactStream>, Status> {
        Err(Status::unimplemented(""))
    }
}
