//! Messages about what has become of secrets: versions.

use super::{Faults, etag, timestamp};
use crate::{
    domain::{RequestId, SecretName, WorkspaceId},
    grpc::proto,
    service::{Error, ListSecretVersions, RollbackSecret, VersionView},
};

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
