//! Messages about what has become of secrets: versions, deletion.

use super::{Faults, etag, timestamp};
use crate::{
    domain::{RequestId, SecretName, SecretUid, WorkspaceId},
    grpc::proto,
    service::{Error, ListSecretVersions, RollbackSecret, UndeleteSecret, VersionView},
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
