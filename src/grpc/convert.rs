//! API messages to domain types and back. Every field is checked here, all
//! faults of a message are told at once, and nothing is checked again later.

pub(super) mod keys;
mod lifecycle;

use std::{mem, sync::Arc, time::Duration};

pub(super) use self::lifecycle::{
    audit_page, list_audit_events, list_versions, rollback, undelete, versions,
};
use super::proto;
use crate::{
    domain::{
        Alias, ConnectionId, Description, Etag, FencingToken, Integration, LeaseHolder, LeaseTtl,
        ManagedBy, Owner, Plaintext, Refusal, RequestId, RunId, SecretName, SecretUid, Timestamp,
        WorkflowId, WorkspaceId,
    },
    service::{
        AcquireRefreshLease, CreateSecret, Credential, Credentials, DeleteSecret, Error, Expiry,
        ExpiryChange, FieldViolation, GetSecret, Lease, ListSecretUsage, ListSecrets, Page,
        PageSize, ReleaseRefreshLease, ResolveSecrets, Resolved, SecretUsage, SecretView, Seen,
        UpdateSecret, UsagePage,
    },
};

/// Faults of one message.
#[derive(Default)]
pub(super) struct Faults(Vec<FieldViolation>);

impl Faults {
    pub(super) fn note(&mut self, violation: FieldViolation) {
        self.0.push(violation);
    }

    /// What was parsed, or `None` and a fault noted.
    pub(super) fn check<T>(&mut self, field: &str, parsed: Result<T, Refusal>) -> Option<T> {
        self.check_at(|| field.to_owned(), parsed)
    }

    /// The same; the field's name is made only to be told.
    fn check_at<T>(
        &mut self,
        field: impl FnOnce() -> String,
        parsed: Result<T, Refusal>,
    ) -> Option<T> {
        parsed.map_err(|refusal| self.0.push(FieldViolation::new(field(), refusal.rule()))).ok()
    }

    /// As [`Faults::check`]; the empty text stands for absence.
    pub(super) fn optional<T>(
        &mut self,
        field: &str,
        text: &str,
        parse: fn(&str) -> Result<T, Refusal>,
    ) -> Option<T> {
        if text.is_empty() { None } else { self.check(field, parse(text)) }
    }

    fn owner(&mut self, owner: Option<&proto::Owner>) -> Option<Owner> {
        let owner = owner?;
        let integration = self.check("owner.integration", Integration::parse(&owner.integration));
        let connection_id =
            self.check("owner.connection_id", ConnectionId::parse(&owner.connection_id));
        Some(Owner { integration: integration?, connection_id: connection_id? })
    }

    fn time(&mut self, time: Option<prost_types::Timestamp>) -> Option<Timestamp> {
        let time = time?;
        let parsed = u32::try_from(time.nanos)
            .ok()
            .and_then(|nanos| Timestamp::new(time.seconds, nanos))
            .ok_or(Refusal::Malformed(
                "must lie between 0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999999999Z",
            ));
        self.check("expire_time", parsed)
    }

    /// Versions count from 1.
    fn version(&mut self, field: &str, version: u64) -> Option<u64> {
        let parsed = Some(version).filter(|version| *version > 0);
        self.check(field, parsed.ok_or(Refusal::Malformed("must be at least 1")))
    }

    /// At most one of the two.
    fn expiry(
        &mut self,
        time: Option<prost_types::Timestamp>,
        ttl: Option<prost_types::Duration>,
    ) -> Option<Expiry> {
        if time.is_some() && ttl.is_some() {
            let rule = Refusal::Malformed("must be absent where expire_time is present");
            return self.check("ttl", Err(rule));
        }
        let ttl = self.duration("ttl", ttl);
        if ttl.is_some_and(|ttl| ttl.is_zero()) {
            return self.check("ttl", Err(Refusal::Malformed("must be longer than 0")));
        }
        self.time(time).map(Expiry::At).or(ttl.map(Expiry::After))
    }

    fn duration(
        &mut self,
        field: &str,
        duration: Option<prost_types::Duration>,
    ) -> Option<Duration> {
        // google.protobuf.Duration: at most 10,000 years.
        const MAX_SECONDS: u64 = 315_576_000_000;
        let duration = duration?;
        let parsed = u64::try_from(duration.seconds)
            .ok()
            .zip(u32::try_from(duration.nanos).ok())
            .filter(|(seconds, nanos)| *seconds <= MAX_SECONDS && *nanos < 1_000_000_000)
            .map(|(seconds, nanos)| Duration::new(seconds, nanos));
        self.check(field, parsed.ok_or(Refusal::Malformed("must be 0 to 315,576,000,000 seconds")))
    }

    pub(super) fn credentials(&mut self, all: &[proto::Credential]) -> Vec<Credential> {
        let mut credentials = Vec::with_capacity(all.len());
        for (i, credential) in all.iter().enumerate() {
            let field = |name| move || format!("credentials[{i}].{name}");
            let secret = self.check_at(field("secret"), SecretName::parse(&credential.secret));
            let alias = match (credential.alias.as_str(), &secret) {
                ("", name) => name.as_ref().map(Alias::from),
                (alias, _) => self.check_at(field("alias"), Alias::parse(alias)),
            };
            let uid = match credential.uid.as_str() {
                "" => None,
                uid => self.check_at(field("uid"), SecretUid::parse(uid)),
            };
            let version = pinned(credential.version);
            let seen = Seen { min_version: pinned(credential.min_version), uid };
            credentials.extend(secret.zip(alias).map(|(secret, alias)| Credential {
                secret,
                alias,
                version,
                seen,
            }));
        }
        credentials
    }

    /// The message, if all its required fields were parsed and no fault noted.
    pub(super) fn finish<T>(self, message: Option<T>) -> Result<T, Error> {
        match message {
            Some(message) if self.0.is_empty() => Ok(message),
            _ => Err(Error::Invalid(self.0)),
        }
    }
}

/// Takes a value over. Too large is another error than malformed.
fn value(faults: &mut Faults, text: String) -> Result<Option<Plaintext>, Error> {
    match Plaintext::parse(text) {
        Ok(value) => Ok(Some(value)),
        Err(Refusal::TooLarge(rule)) => {
            Err(Error::ValueTooLarge(FieldViolation::new("value", rule)))
        }
        Err(refusal @ Refusal::Malformed(_)) => Ok(faults.check("value", Err(refusal))),
    }
}

fn etag(text: &str) -> Option<Etag> {
    (!text.is_empty()).then(|| Etag::received(text))
}

/// A version that a credential names; 0 stands for the current one.
pub(super) fn pinned(version: u64) -> Option<u64> {
    Some(version).filter(|version| *version > 0)
}

pub(super) fn create(mut message: proto::CreateSecretRequest) -> Result<CreateSecret, Error> {
    let mut faults = Faults::default();
    let value = value(&mut faults, mem::take(&mut message.value))?;
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.check("name", SecretName::parse(&message.name));
    let description = faults.check("description", Description::parse(&message.description));
    let owner = faults.owner(message.owner.as_ref());
    let expiry = faults.expiry(message.expire_time, message.ttl);
    let request_id = faults.optional("request_id", &message.request_id, RequestId::parse);
    let validate_only = message.validate_only;
    let request = || {
        Some(CreateSecret {
            workspace: workspace?,
            name: name?,
            value: value?,
            description: description?,
            owner,
            expiry,
            request_id,
            validate_only,
        })
    };
    let request = request();
    faults.finish(request)
}

pub(super) fn get(message: proto::GetSecretRequest) -> Result<GetSecret, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.check("name", SecretName::parse(&message.name));
    faults.finish(workspace.zip(name).map(|(workspace, name)| GetSecret { workspace, name }))
}

pub(super) fn update(mut message: proto::UpdateSecretRequest) -> Result<UpdateSecret, Error> {
    let mut faults = Faults::default();
    let value = match message.value.take() {
        Some(text) => value(&mut faults, text)?,
        None => None,
    };
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.check("name", SecretName::parse(&message.name));
    let description = match message.description.as_deref() {
        Some(text) => faults.check("description", Description::parse(text)),
        None => None,
    };
    let expiry = match faults.expiry(message.expire_time, message.ttl) {
        None => ExpiryChange::Keep,
        Some(Expiry::At(time)) if (time.seconds(), time.nanos()) == (0, 0) => ExpiryChange::Clear,
        Some(expiry) => ExpiryChange::Set(expiry),
    };
    let owner = faults.owner(message.owner.as_ref());
    let request_id = faults.optional("request_id", &message.request_id, RequestId::parse);
    if faults.0.is_empty()
        && value.is_none()
        && description.is_none()
        && expiry == ExpiryChange::Keep
    {
        return Err(Error::field(
            "value",
            "must be present unless description, expire_time or ttl is",
        ));
    }
    let fencing_token = message.fencing_token.map(FencingToken::parse);
    let fencing_token = fencing_token.and_then(|token| faults.check("fencing_token", token));
    if faults.0.is_empty() && fencing_token.is_some() && value.is_none() {
        return Err(Error::field("fencing_token", "must come with a new value"));
    }
    let (etag, allow_missing) = (etag(&message.etag), message.allow_missing);
    let validate_only = message.validate_only;
    let request = workspace.zip(name).map(|(workspace, name)| UpdateSecret {
        workspace,
        name,
        value,
        description,
        expiry,
        etag,
        fencing_token,
        allow_missing,
        owner,
        request_id,
        validate_only,
    });
    faults.finish(request)
}

pub(super) fn delete(message: proto::DeleteSecretRequest) -> Result<DeleteSecret, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.check("name", SecretName::parse(&message.name));
    let request_id = faults.optional("request_id", &message.request_id, RequestId::parse);
    let etag = etag(&message.etag);
    let request = workspace.zip(name).map(|(workspace, name)| DeleteSecret {
        workspace,
        name,
        etag,
        permanent: message.permanent,
        request_id,
    });
    faults.finish(request)
}

pub(super) fn acquire_lease(
    message: proto::AcquireRefreshLeaseRequest,
) -> Result<AcquireRefreshLease, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.check("name", SecretName::parse(&message.name));
    let holder = faults.check("holder", LeaseHolder::parse(&message.holder));
    let ttl = match message.ttl {
        None => Some(LeaseTtl::default()),
        Some(ttl) => faults.check("ttl", LeaseTtl::parse(ttl.seconds, ttl.nanos)),
    };
    let etag = etag(&message.etag);
    let request = || {
        Some(AcquireRefreshLease {
            workspace: workspace?,
            name: name?,
            holder: holder?,
            ttl: ttl?,
            etag,
        })
    };
    let request = request();
    faults.finish(request)
}

pub(super) fn release_lease(
    message: proto::ReleaseRefreshLeaseRequest,
) -> Result<ReleaseRefreshLease, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.check("name", SecretName::parse(&message.name));
    let token = faults.check("fencing_token", FencingToken::parse(message.fencing_token));
    let request =
        || Some(ReleaseRefreshLease { workspace: workspace?, name: name?, fencing_token: token? });
    let request = request();
    faults.finish(request)
}

pub(super) fn list(message: proto::ListSecretsRequest) -> Result<ListSecrets, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let page_size = faults.check("page_size", PageSize::parse(message.page_size));
    let expiring_within = faults.duration("expiring_within", message.expiring_within);
    let request = workspace.zip(page_size).map(|(workspace, page_size)| ListSecrets {
        workspace,
        page_size,
        page_token: message.page_token,
        show_system_managed: message.show_system_managed,
        show_deleted: message.show_deleted,
        expiring_within,
    });
    faults.finish(request)
}

pub(super) fn list_usage(message: proto::ListSecretUsageRequest) -> Result<ListSecretUsage, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.optional("name", &message.name, SecretName::parse);
    let page_size = faults.check("page_size", PageSize::parse(message.page_size));
    let request = workspace.zip(page_size).map(|(workspace, page_size)| ListSecretUsage {
        workspace,
        name,
        page_size,
        page_token: message.page_token,
    });
    faults.finish(request)
}

pub(super) fn resolve(message: proto::ResolveSecretsRequest) -> Result<ResolveSecrets, Error> {
    Credentials::check_count(message.credentials.len())?;
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let workflow_id = faults.optional("workflow_id", &message.workflow_id, WorkflowId::parse);
    let run_id = faults.optional("run_id", &message.run_id, RunId::parse);
    let credentials = faults.credentials(&message.credentials);
    let workspace = faults.finish(workspace)?;
    let credentials = Credentials::new(credentials)?;
    Ok(ResolveSecrets { workspace, credentials, workflow_id, run_id })
}

pub(super) fn secret(view: SecretView) -> proto::Secret {
    let SecretView { workspace, metadata, etag, deletion, expired, last_resolve_time } = view;
    let (managed_by, owner) = match metadata.managed_by {
        ManagedBy::User => (proto::ManagedBy::User, None),
        ManagedBy::System(owner) => (
            proto::ManagedBy::System,
            Some(proto::Owner {
                integration: owner.integration.to_string(),
                connection_id: owner.connection_id.to_string(),
            }),
        ),
    };
    proto::Secret {
        workspace: workspace.to_string(),
        name: metadata.name.to_string(),
        // A preview has no identity yet that anyone could refer to.
        uid: etag.as_ref().map_or_else(String::new, |_| metadata.uid.to_string()),
        description: metadata.description.to_string(),
        managed_by: managed_by.into(),
        owner,
        version: metadata.version,
        etag: etag.map_or_else(String::new, |etag| etag.as_str().to_owned()),
        create_time: Some(timestamp(metadata.create_time)),
        update_time: Some(timestamp(metadata.update_time)),
        expire_time: metadata.expire_time.map(timestamp),
        created_by: metadata.created_by,
        updated_by: metadata.updated_by,
        delete_time: deletion.map(|(delete_time, _)| timestamp(delete_time)),
        purge_time: deletion.map(|(_, purge_time)| timestamp(purge_time)),
        expired,
        last_resolve_time: last_resolve_time.map(timestamp),
    }
}

pub(super) fn lease(lease: Lease) -> proto::RefreshLease {
    proto::RefreshLease {
        fencing_token: lease.fencing_token.as_u64(),
        expire_time: Some(timestamp(lease.expire_time)),
        secret: Some(secret(lease.secret)),
    }
}

pub(super) fn usage_page(page: UsagePage) -> proto::ListSecretUsageResponse {
    let entry = |SecretUsage { name, missing, usage }: SecretUsage| {
        let workflow = |(id, time): (&WorkflowId, _)| proto::WorkflowUsage {
            workflow_id: id.to_string(),
            last_resolve_time: Some(timestamp(time)),
        };
        proto::SecretUsage {
            name: name.to_string(),
            missing,
            last_resolve_time: usage.last().map(timestamp),
            workflows: usage.workflows().map(workflow).collect(),
        }
    };
    proto::ListSecretUsageResponse {
        usages: page.usages.into_iter().map(entry).collect(),
        next_page_token: page.next_page_token,
    }
}

pub(super) fn page(page: Page) -> proto::ListSecretsResponse {
    proto::ListSecretsResponse {
        secrets: page.secrets.into_iter().map(secret).collect(),
        next_page_token: page.next_page_token,
    }
}

pub(super) fn resolved(all: Vec<Resolved>) -> proto::ResolveSecretsResponse {
    let entry = |Resolved { alias, name, uid, payload, .. }: Resolved| {
        let (version, expire_time) = (payload.version, payload.expire_time.map(timestamp));
        // Moved out under the last of its aliases, copied for the others.
        let value = match Arc::try_unwrap(payload) {
            Ok(payload) => payload.value.into_exposed(),
            Err(shared) => shared.value.expose().to_owned(),
        };
        let (name, uid) = (name.to_string(), uid.to_string());
        let secret = proto::ResolvedSecret { name, value, version, expire_time, uid };
        (alias.to_string(), secret)
    };
    proto::ResolveSecretsResponse { secrets: all.into_iter().map(entry).collect() }
}

pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.seconds(),
        // Below 1,000,000,000 by type.
        nanos: i32::try_from(time.nanos()).unwrap_or_default(),
    }
}
