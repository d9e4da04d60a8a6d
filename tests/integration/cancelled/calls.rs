//! All calls of the service, on a workspace that has something for each.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::BoxFuture;
use workflow_secrets::{
    domain::{
        Alias, ConnectionId, DataKeyId, FencingToken, Integration, LeaseHolder, LeaseTtl, Owner,
        Plaintext, RequestId, SecretName, WorkspaceId,
    },
    service::{
        AcquireRefreshLease, CheckReferences, CreateSecret, Credential, Credentials, Days,
        DeleteSecret, DescribeWorkspaceKeys, Error, ExpiryChange, GetSecret, ListAuditEvents,
        ListSecretUsage, ListSecretVersions, ListSecrets, OpenRedaction, PageSize, PrepareTemplate,
        ReencryptWorkspace, ReleaseRefreshLease, RenderTemplate, ResolveSecrets, RewrapDataKeys,
        RollbackSecret, RotateDataKey, Secrets, Seen, ShredWorkspace, Steps, UndeleteSecret,
        UpdateSecret,
    },
    template::{Format, Template},
};

use super::REQUEST;
use crate::support::service::caller;

/// What became of the workspace.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Read,
    Change,
    /// A change in several commits, which ends when its reader leaves.
    Job,
}

/// What a call needs to know of the workspace.
#[derive(Clone)]
pub(super) struct Needs {
    ws: WorkspaceId,
    token: Option<FencingToken>,
    data_key: Option<DataKeyId>,
}

type Outcome = BoxFuture<'static, Result<(), Error>>;

pub(super) struct Call {
    pub(super) name: &'static str,
    pub(super) method: &'static str,
    /// Its word in the audit stream.
    pub(super) action: &'static str,
    pub(super) kind: Kind,
    pub(super) run: fn(Arc<Secrets>, Needs) -> Outcome,
}

const fn call(
    [name, method, action]: [&'static str; 3],
    kind: Kind,
    run: fn(Arc<Secrets>, Needs) -> Outcome,
) -> Call {
    Call { name, method, action, kind, run }
}

pub(super) const CALLS: &[Call] = &[
    call(["first", "CreateSecret", "create"], Kind::Change, create),
    call(["create", "CreateSecret", "create"], Kind::Change, create),
    call(["get", "GetSecret", "get"], Kind::Read, |secrets, Needs { ws, .. }| {
        let request = GetSecret { workspace: ws, name: name("KEY") };
        Box::pin(async move { secrets.get(&caller(), request).await.map(drop) })
    }),
    call(["update", "UpdateSecret", "update"], Kind::Change, |secrets, needs| {
        update(secrets, needs, false)
    }),
    call(["missing", "UpdateSecret", "update"], Kind::Change, |secrets, needs| {
        update(secrets, needs, true)
    }),
    call(["delete", "DeleteSecret", "delete"], Kind::Change, |secrets, needs| {
        delete(secrets, needs, false)
    }),
    call(["for-good", "DeleteSecret", "delete"], Kind::Change, |secrets, needs| {
        delete(secrets, needs, true)
    }),
    call(["undelete", "UndeleteSecret", "undelete"], Kind::Change, |secrets, needs| {
        let request = UndeleteSecret {
            workspace: needs.ws,
            name: name("GONE"),
            uid: None,
            request_id: request(),
        };
        Box::pin(async move { secrets.undelete(&caller(), request).await.map(drop) })
    }),
    call(["rollback", "RollbackSecret", "rollback"], Kind::Change, |secrets, needs| {
        let request = RollbackSecret {
            workspace: needs.ws,
            name: name("KEY"),
            version: 1,
            etag: None,
            request_id: request(),
        };
        Box::pin(async move { secrets.rollback(&caller(), request).await.map(drop) })
    }),
    call(["versions", "ListSecretVersions", "list_versions"], Kind::Read, |secrets, needs| {
        let request = ListSecretVersions { workspace: needs.ws, name: name("KEY") };
        Box::pin(async move { secrets.list_versions(&caller(), request).await.map(drop) })
    }),
    call(["trail", "ListAuditEvents", "list_audit_events"], Kind::Read, |secrets, needs| {
        let request = ListAuditEvents {
            workspace: needs.ws,
            name: None,
            page_size: PageSize::parse(0).unwrap(),
            page_token: String::new(),
        };
        Box::pin(async move { secrets.list_audit_events(&caller(), request).await.map(drop) })
    }),
    call(["list", "ListSecrets", "list"], Kind::Read, |secrets, needs| {
        let request = ListSecrets {
            workspace: needs.ws,
            page_size: PageSize::parse(0).unwrap(),
            page_token: String::new(),
            show_system_managed: true,
            show_deleted: true,
            expiring_within: None,
        };
        Box::pin(async move { secrets.list(&caller(), request).await.map(drop) })
    }),
    call(["resolve", "ResolveSecrets", "resolve"], Kind::Read, |secrets, needs| {
        Box::pin(async move {
            let request = resolve(&needs.ws, &name("KEY"), Some(1));
            secrets.resolve(&caller(), request).await.map(drop)
        })
    }),
    call(["render", "RenderTemplate", "render"], Kind::Read, |secrets, needs| {
        let request = RenderTemplate {
            workspace: needs.ws,
            template: template(Format::Text, "Bearer {{secrets.KEY}}"),
            credentials: Credentials::or_none(vec![]).unwrap(),
            workflow_id: None,
            run_id: None,
        };
        Box::pin(async move { secrets.render(&caller(), request).await.map(drop) })
    }),
    call(["check", "CheckReferences", "check"], Kind::Read, |secrets, needs| {
        let request = CheckReferences {
            workspace: needs.ws,
            template: Some(template(Format::Text, "Bearer {{secrets.KEY}}")),
            credentials: vec![],
            expiring_within_days: Days::new(7).unwrap(),
        };
        Box::pin(async move { secrets.check(&caller(), request).await.map(drop) })
    }),
    call(["prepare", "PrepareTemplate", "prepare"], Kind::Read, |secrets, needs| {
        let request = PrepareTemplate {
            workspace: needs.ws,
            template: template(Format::Json, r#"["the second value"]"#),
            credentials: vec![],
            strict: false,
        };
        Box::pin(async move { secrets.prepare(&caller(), request).await.map(drop) })
    }),
    call(["redact", "Redact", "redact"], Kind::Read, |secrets, needs| {
        let request = OpenRedaction {
            workspace: needs.ws,
            names: Some(BTreeSet::from([name("KEY")])),
            mask_short: false,
            workflow_id: None,
            run_id: None,
        };
        Box::pin(async move {
            let (mut redaction, mut out) = (secrets.redact(&caller(), request).await?, vec![]);
            redaction.push(b"it is the second value", &mut out).await?;
            redaction.finish(&mut out).await?;
            redaction.end().await.map(drop)
        })
    }),
    call(["acquire", "AcquireRefreshLease", "acquire_lease"], Kind::Change, |secrets, needs| {
        Box::pin(async move { acquire(&secrets, &needs.ws, "FREE").await.map(drop) })
    }),
    call(["release", "ReleaseRefreshLease", "release_lease"], Kind::Change, |secrets, needs| {
        let request = ReleaseRefreshLease {
            workspace: needs.ws,
            name: name("HELD"),
            fencing_token: needs.token.unwrap(),
        };
        Box::pin(async move { secrets.release_lease(&caller(), request).await })
    }),
    call(["usage", "ListSecretUsage", "list_usage"], Kind::Read, |secrets, needs| {
        let request = ListSecretUsage {
            workspace: needs.ws,
            name: None,
            page_size: PageSize::parse(0).unwrap(),
            page_token: String::new(),
        };
        Box::pin(async move { secrets.list_usage(&caller(), request).await.map(drop) })
    }),
    call(["describe", "DescribeWorkspaceKeys", "describe_keys"], Kind::Read, |secrets, needs| {
        let request = DescribeWorkspaceKeys { workspace: needs.ws };
        Box::pin(async move { secrets.describe_keys(&caller(), request).await.map(drop) })
    }),
    call(["rotate", "RotateDataKey", "rotate_data_key"], Kind::Change, |secrets, needs| {
        let request = RotateDataKey { workspace: needs.ws, data_key: needs.data_key };
        Box::pin(async move { secrets.rotate_data_key(&caller(), request).await.map(drop) })
    }),
    call(["reencrypt", "ReencryptWorkspace", "reencrypt"], Kind::Job, |secrets, needs| {
        let request = ReencryptWorkspace { workspace: needs.ws, forget_requests: true };
        Box::pin(async move { all(secrets.reencrypt(&caller(), request).await?).await })
    }),
    call(["rewrap", "RewrapDataKeys", "rewrap_data_keys"], Kind::Job, |secrets, needs| {
        let request = RewrapDataKeys { workspace: Some(needs.ws), kms_key: None };
        Box::pin(async move { all(secrets.rewrap_data_keys(&caller(), request).await?).await })
    }),
    call(["shred", "ShredWorkspace", "shred"], Kind::Change, |secrets, needs| {
        let request = ShredWorkspace { workspace: needs.ws };
        Box::pin(async move { secrets.shred(&caller(), request).await.map(drop) })
    }),
];

/// Reads a job to its end.
async fn all<T>(mut steps: Steps<T>) -> Result<(), Error> {
    while let Some(step) = steps.recv().await {
        step?;
    }
    Ok(())
}

fn name(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

fn plaintext(text: &str) -> Option<Plaintext> {
    Plaintext::parse(text.to_owned()).ok()
}

fn request() -> Option<RequestId> {
    Some(RequestId::parse(REQUEST).unwrap())
}

fn template(format: Format, text: &str) -> Template {
    Template::parse(format, text.to_owned()).ok().unwrap()
}

fn create(secrets: Arc<Secrets>, needs: Needs) -> Outcome {
    let request = creation(&needs.ws, "NEW", "new", false, request());
    Box::pin(async move { secrets.create(&caller(), request).await.map(drop) })
}

fn creation(
    ws: &WorkspaceId,
    to: &str,
    value: &str,
    system: bool,
    request_id: Option<RequestId>,
) -> CreateSecret {
    let owner = system.then(|| Owner {
        integration: Integration::parse("sheets").unwrap(),
        connection_id: ConnectionId::parse("c").unwrap(),
    });
    CreateSecret {
        workspace: ws.clone(),
        name: name(to),
        value: plaintext(value).unwrap(),
        description: Default::default(),
        owner,
        expiry: None,
        request_id,
        validate_only: false,
    }
}

fn change_of(ws: &WorkspaceId, to: &str, value: &str) -> UpdateSecret {
    UpdateSecret {
        workspace: ws.clone(),
        name: name(to),
        value: plaintext(value),
        description: None,
        expiry: ExpiryChange::Keep,
        etag: None,
        fencing_token: None,
        allow_missing: false,
        owner: None,
        request_id: None,
        validate_only: false,
    }
}

fn update(secrets: Arc<Secrets>, needs: Needs, allow_missing: bool) -> Outcome {
    let to = if allow_missing { "NEW" } else { "KEY" };
    let request = UpdateSecret {
        allow_missing,
        request_id: request(),
        ..change_of(&needs.ws, to, "the third value")
    };
    Box::pin(async move { secrets.update(&caller(), request).await.map(drop) })
}

fn delete(secrets: Arc<Secrets>, needs: Needs, permanent: bool) -> Outcome {
    let request = DeleteSecret {
        workspace: needs.ws,
        name: name("KEY"),
        etag: None,
        permanent,
        request_id: request(),
    };
    Box::pin(async move { secrets.delete(&caller(), request).await })
}

async fn acquire(
    secrets: &Arc<Secrets>,
    ws: &WorkspaceId,
    of: &str,
) -> Result<FencingToken, Error> {
    let request = AcquireRefreshLease {
        workspace: ws.clone(),
        name: name(of),
        holder: LeaseHolder::parse("worker").unwrap(),
        ttl: LeaseTtl::parse(60, 0).unwrap(),
        etag: None,
    };
    secrets.acquire_lease(&caller(), request).await.map(|lease| lease.fencing_token)
}

fn resolve(ws: &WorkspaceId, secret: &SecretName, version: Option<u64>) -> ResolveSecrets {
    let (secret, alias) = (secret.clone(), Alias::from(secret));
    let credential = Credential { secret, alias, version, seen: Seen::default() };
    ResolveSecrets {
        workspace: ws.clone(),
        credentials: Credentials::new(vec![credential]).unwrap(),
        workflow_id: None,
        run_id: None,
    }
}

/// A value as it is stored.
pub(super) async fn value(
    secrets: &Arc<Secrets>,
    ws: &WorkspaceId,
    of: &SecretName,
    version: u64,
) -> String {
    let resolved = secrets.resolve(&caller(), resolve(ws, of, Some(version))).await.unwrap();
    resolved[0].payload.value.expose().to_owned()
}

/// A workspace that has something for each call, but for that which is to be the first
/// in it.
pub(super) async fn prepare(secrets: &Arc<Secrets>, call: &Call, ws: &WorkspaceId) -> Needs {
    let mut needs = Needs { ws: ws.clone(), token: None, data_key: None };
    if call.name == "first" {
        return needs;
    }
    let who = caller();
    for (to, system) in [("KEY", false), ("GONE", false), ("FREE", true), ("HELD", true)] {
        let request = creation(ws, to, "the first value", system, None);
        secrets.create(&who, request).await.unwrap();
    }
    // Of two data keys, so that there is one to retire.
    let rotate = RotateDataKey { workspace: ws.clone(), data_key: None };
    secrets.rotate_data_key(&who, rotate).await.unwrap();
    secrets.update(&who, change_of(ws, "KEY", "the second value")).await.unwrap();
    let gone = DeleteSecret {
        workspace: ws.clone(),
        name: name("GONE"),
        etag: None,
        permanent: false,
        request_id: None,
    };
    secrets.delete(&who, gone).await.unwrap();
    needs.token = Some(acquire(secrets, ws, "HELD").await.unwrap());
    let request = DescribeWorkspaceKeys { workspace: ws.clone() };
    let keys = secrets.describe_keys(&who, request).await.unwrap().keys;
    needs.data_key = Some(keys[0].wrapped.id);
    needs
}
