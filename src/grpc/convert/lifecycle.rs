//! Messages about what has become of secrets: versions, deletion, trail.

use super::{Faults, etag, timestamp};
use crate::{
    domain::{RequestId, SecretName, SecretUid, TrailEntry, WorkspaceId},
    grpc::proto,
    service::{
        AuditPage, Error, ListAuditEvents, ListSecretVersions, PageSize, RollbackSecret,
        UndeleteSecret, VersionView,
    },
};

pub(in crate::grpc) fn undelete(
    message: proto::UndeleteSecretRequest,
) -> Result<UndeleteSecret, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.check("name", SecretName::parse(&message.name));
    let uid = faults.optional("uid", &message.uid, SecretUid::parse);
    let request_id = faults.optional("request_id", &message.request_id, RequestId::parse);
    let request = workspace.zip(name).map(|(workspace, name)| UndeleteSecret {
        workspace,
        name,
        uid,
        request_id,
    });
    faults.finish(request)
}

pub(in crate::grpc) fn rollback(
    message: proto::RollbackSecretRequest,
) -> Result<RollbackSecret, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.check("name", SecretName::parse(&message.name));
    let version = faults.version("version", message.version);
    let request_id = faults.optional("request_id", &message.request_id, RequestId::parse);
    let etag = etag(&message.etag);
    let request = || {
        Some(RollbackSecret {
            workspace: workspace?,
            name: name?,
            version: version?,
            etag,
            request_id,
        })
    };
    let request = request();
    faults.finish(request)
}

pub(in crate::grpc) fn list_versions(
    message: proto::ListSecretVersionsRequest,
) -> Result<ListSecretVersions, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.check("name", SecretName::parse(&message.name));
    let request =
        workspace.zip(name).map(|(workspace, name)| ListSecretVersions { workspace, name });
    faults.finish(request)
}

pub(in crate::grpc) fn versions(all: Vec<VersionView>) -> proto::ListSecretVersionsResponse {
    let version = |view: VersionView| proto::SecretVersion {
        version: view.version,
        create_time: Some(timestamp(view.create_time)),
        created_by: view.created_by,
        current: view.current,
    };
    proto::ListSecretVersionsResponse { versions: all.into_iter().map(version).collect() }
}

pub(in crate::grpc) fn list_audit_events(
    message: proto::ListAuditEventsRequest,
) -> Result<ListAuditEvents, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let name = faults.optional("name", &message.name, SecretName::parse);
    let page_size = faults.check("page_size", PageSize::parse(message.page_size));
    let request = workspace.zip(page_size).map(|(workspace, page_size)| ListAuditEvents {
        workspace,
        name,
        page_size,
        page_token: message.page_token,
    });
    faults.finish(request)
}

pub(in crate::grpc) fn audit_page(page: AuditPage) -> proto::ListAuditEventsResponse {
    let event = |entry: TrailEntry| proto::AuditEvent {
        create_time: Some(timestamp(entry.time)),
        action: entry.action,
        caller: entry.caller,
        actor: entry.actor,
        name: entry.name.map_or_else(String::new, |name| name.to_string()),
        uid: entry.uid.map_or_else(String::new, |uid| uid.to_string()),
        version: entry.version,
        restored_version: entry.restored_version,
        request_id: entry.request_id.map_or_else(String::new, |id| id.to_string()),
        trace_id: entry.trace_id,
    };
    proto::ListAuditEventsResponse {
        events: page.entries.into_iter().map(event).collect(),
        next_page_token: page.next_page_token,
    }
}
