//! One function per call: identity, parse, call the service, answer.

mod keys;

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use http::Extensions;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tracing::Instrument as _;

use super::{
    convert, documents,
    identity::{self, IdentityError},
    proto,
    redact::{self, Answers},
};
use crate::service::{Error, Secrets, access::Caller, audit::Action};

/// The service as tonic sees it.
pub(super) struct Handlers {
    secrets: Arc<Secrets>,
    redaction_idle: Duration,
}

impl Handlers {
    pub(super) fn new(secrets: Arc<Secrets>, redaction_idle: Duration) -> Self {
        Self { secrets, redaction_idle }
    }

    async fn call<Q, C, T, F>(
        &self,
        action: Action,
        request: Request<Q>,
        parse: fn(Q) -> Result<C, Error>,
        run: impl FnOnce(Arc<Secrets>, Caller, C) -> F + Send,
    ) -> Result<Response<T>, Status>
    where
        Q: Send,
        C: Send,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let (metadata, extensions, message) = request.into_parts();
        let outcome = match self.caller(action, &extensions, &metadata).await {
            Err(error) => Err(error),
            Ok(caller) => match self.parsed(action, &caller, parse(message)).await {
                Err(error) => Err(error),
                Ok(command) => pin!(run(Arc::clone(&self.secrets), caller, command)).await,
            },
        };
        match outcome {
            Ok(answer) => {
                tracing::debug!(method = action.as_str(), "ok");
                self.secrets.metrics.call(action.as_str(), "ok");
                Ok(Response::new(answer))
            }
            Err(error) => {
                self.failed(action, &error);
                Err(error.into())
            }
        }
    }

    fn failed(&self, action: Action, error: &Error) {
        log(action, error);
        self.secrets.metrics.call(action.as_str(), error.reason());
    }
}

impl Handlers {
    /// Whom a call comes from.
    async fn caller(
        &self,
        action: Action,
        extensions: &Extensions,
        metadata: &MetadataMap,
    ) -> Result<Caller, Error> {
        match identity::caller(extensions, metadata) {
            Ok(caller) => Ok(caller),
            // `Limits` refuses and logs these before they come here.
            Err(IdentityError::Unauthenticated(why)) => Err(Error::Unauthenticated(why)),
            Err(IdentityError::Invalid { id, field, refusal }) => {
                let deadline = identity::deadline(extensions);
                let caller = Caller { id, actor: None, trace_id: None, deadline };
                self.parsed(action, &caller, Err(Error::refused(field, refusal))).await
            }
        }
    }

    /// What was parsed; a refusal leaves its audit line.
    async fn parsed<C>(
        &self,
        action: Action,
        caller: &Caller,
        parsed: Result<C, Error>,
    ) -> Result<C, Error> {
        if let Err(error) = &parsed {
            self.secrets.audit_refusal(caller, action, error).await;
        }
        parsed
    }

    /// The first message opens the stream: what follows is up to a task.
    async fn open_redaction(
        &self,
        request: Request<Streaming<proto::RedactRequest>>,
    ) -> Result<Answers, Refused> {
        let (metadata, extensions, mut chunks) = request.into_parts();
        let caller = self.caller(Action::Redact, &extensions, &metadata).await?;
        let first = chunks.message().await.map_err(Refused::ByTonic)?;
        let parsed = documents::open_redaction(first);
        let command = self.parsed(Action::Redact, &caller, parsed).await?;
        let redaction = self.secrets.redact(&caller, command).await?;
        let ending = self.secrets.ending.clone();
        let (stream, answers) = redact::stream(redaction, chunks, ending, self.redaction_idle);
        self.secrets.changes.spawn(stream.in_current_span());
        Ok(answers)
    }
}

/// Why a stream was not opened.
enum Refused {
    ByTonic(Status),
    ByUs(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::ByUs(error)
    }
}

/// What operators should see of a failed call; the audit stream has the rest.
pub(super) fn log(action: Action, error: &Error) {
    let (method, reason) = (action.as_str(), error.reason());
    match error {
        Error::RecordCorrupt(_)
        | Error::DataKeyMissing
        | Error::KmsKeyUnusable(_)
        | Error::AuditUnavailable
        | Error::StoreFull
        | Error::Internal(_) => tracing::error!(method, reason, %error, "call failed"),
        Error::KmsUnavailable { .. }
        | Error::KmsBudgetExceeded { .. }
        | Error::StoreUnavailable(_) => {
            tracing::warn!(method, reason, %error, "call failed");
        }
        _ => tracing::debug!(method, reason, "call refused"),
    }
}

#[tonic::async_trait]
impl proto::secrets_service_server::SecretsService for Handlers {
    async fn create_secret(
        &self,
        request: Request<proto::CreateSecretRequest>,
    ) -> Result<Response<proto::Secret>, Status> {
        self.call(Action::Create, request, convert::create, |secrets, caller, command| async move {
            secrets.create(&caller, command).await.map(convert::secret)
        })
        .await
    }

    async fn get_secret(
        &self,
        request: Request<proto::GetSecretRequest>,
    ) -> Result<Response<proto::Secret>, Status> {
        self.call(Action::Get, request, convert::get, |secrets, caller, command| async move {
            secrets.get(&caller, command).await.map(convert::secret)
        })
        .await
    }

    async fn update_secret(
        &self,
        request: Request<proto::UpdateSecretRequest>,
    ) -> Result<Response<proto::Secret>, Status> {
        self.call(Action::Update, request, convert::update, |secrets, caller, command| async move {
            secrets.update(&caller, command).await.map(convert::secret)
        })
        .await
    }

    async fn delete_secret(
        &self,
        request: Request<proto::DeleteSecretRequest>,
    ) -> Result<Response<()>, Status> {
        self.call(Action::Delete, request, convert::delete, |secrets, caller, command| async move {
            secrets.delete(&caller, command).await
        })
        .await
    }

    async fn undelete_secret(
        &self,
        request: Request<proto::UndeleteSecretRequest>,
    ) -> Result<Response<proto::Secret>, Status> {
        self.call(
            Action::Undelete,
            request,
            convert::undelete,
            |secrets, caller, command| async move {
                secrets.undelete(&caller, command).await.map(convert::secret)
            },
        )
        .await
    }

    async fn rollback_secret(
        &self,
        request: Request<proto::RollbackSecretRequest>,
    ) -> Result<Response<proto::Secret>, Status> {
        self.call(
            Action::Rollback,
            request,
            convert::rollback,
            |secrets, caller, command| async move {
                secrets.rollback(&caller, command).await.map(convert::secret)
            },
        )
        .await
    }

    async fn list_secret_versions(
        &self,
        request: Request<proto::ListSecretVersionsRequest>,
    ) -> Result<Response<proto::ListSecretVersionsResponse>, Status> {
        self.call(
            Action::ListVersions,
            request,
            convert::list_versions,
            |secrets, caller, command| async move {
                secrets.list_versions(&caller, command).await.map(convert::versions)
            },
        )
        .await
    }

    async fn list_audit_events(
        &self,
        request: Request<proto::ListAuditEventsRequest>,
    ) -> Result<Response<proto::ListAuditEventsResponse>, Status> {
        self.call(
            Action::ListAuditEvents,
            request,
            convert::list_audit_events,
            |secrets, caller, command| async move {
                secrets.list_audit_events(&caller, command).await.map(convert::audit_page)
            },
        )
        .await
    }

    async fn list_secrets(
        &self,
        request: Request<proto::ListSecretsRequest>,
    ) -> Result<Response<proto::ListSecretsResponse>, Status> {
        self.call(Action::List, request, convert::list, |secrets, caller, command| async move {
            secrets.list(&caller, command).await.map(convert::page)
        })
        .await
    }

    async fn resolve_secrets(
        &self,
        request: Request<proto::ResolveSecretsRequest>,
    ) -> Result<Response<proto::ResolveSecretsResponse>, Status> {
        let answer = self.call(
            Action::Resolve,
            request,
            convert::resolve,
            |secrets, caller, command| async move {
                let resolved = pin!(secrets.resolve(&caller, command)).await?;
                let turn = resolved.first().and_then(|one| one.turn.clone().held());
                Ok((convert::resolved(resolved), turn))
            },
        );
        let (metadata, (answer, turn), mut extensions) = pin!(answer).await?.into_parts();
        if let Some(turn) = turn {
            extensions.insert(turn);
        }
        Ok(Response::from_parts(metadata, answer, extensions))
    }

    async fn acquire_refresh_lease(
        &self,
        request: Request<proto::AcquireRefreshLeaseRequest>,
    ) -> Result<Response<proto::RefreshLease>, Status> {
        self.call(
            Action::AcquireLease,
            request,
            convert::acquire_lease,
            |secrets, caller, command| async move {
                secrets.acquire_lease(&caller, command).await.map(convert::lease)
            },
        )
        .await
    }

    async fn release_refresh_lease(
        &self,
        request: Request<proto::ReleaseRefreshLeaseRequest>,
    ) -> Result<Response<()>, Status> {
        self.call(
            Action::ReleaseLease,
            request,
            convert::release_lease,
            |secrets, caller, command| async move { secrets.release_lease(&caller, command).await },
        )
        .await
    }

    async fn list_secret_usage(
        &self,
        request: Request<proto::ListSecretUsageRequest>,
    ) -> Result<Response<proto::ListSecretUsageResponse>, Status> {
        self.call(
            Action::ListUsage,
            request,
            convert::list_usage,
            |secrets, caller, command| async move {
                secrets.list_usage(&caller, command).await.map(convert::usage_page)
            },
        )
        .await
    }

    async fn render_template(
        &self,
        request: Request<proto::RenderTemplateRequest>,
    ) -> Result<Response<proto::RenderTemplateResponse>, Status> {
        self.call(
            Action::Render,
            request,
            documents::render,
            |secrets, caller, command| async move {
                secrets.render(&caller, command).await.map(documents::rendered)
            },
        )
        .await
    }

    async fn check_references(
        &self,
        request: Request<proto::CheckReferencesRequest>,
    ) -> Result<Response<proto::CheckReferencesResponse>, Status> {
        self.call(Action::Check, request, documents::check, |secrets, caller, command| async move {
            secrets.check(&caller, command).await.map(documents::checked)
        })
        .await
    }

    async fn prepare_template(
        &self,
        request: Request<proto::PrepareTemplateRequest>,
    ) -> Result<Response<proto::PrepareTemplateResponse>, Status> {
        self.call(
            Action::Prepare,
            request,
            documents::prepare,
            |secrets, caller, command| async move {
                secrets.prepare(&caller, command).await.map(documents::prepared)
            },
        )
        .await
    }

    type RedactStream = Answers;

    async fn redact(
        &self,
        request: Request<Streaming<proto::RedactRequest>>,
    ) -> Result<Response<Answers>, Status> {
        match self.open_redaction(request).await {
            Ok(answers) => {
                self.secrets.metrics.call(Action::Redact.as_str(), "ok");
                Ok(Response::new(answers))
            }
            Err(Refused::ByTonic(status)) => Err(status),
            Err(Refused::ByUs(error)) => {
                self.failed(Action::Redact, &error);
                Err(error.into())
            }
        }
    }
}
