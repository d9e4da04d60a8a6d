//! Messages of KeyService.

use super::{Faults, proto, timestamp};
use crate::{
    domain::{DataKeyId, WorkspaceId},
    service::{
        DescribeWorkspaceKeys, Error, FieldViolation, RotateDataKey, ShredWorkspace,
        ShreddedWorkspace, WorkspaceKeys,
    },
    store::codec::StoredKey,
};

pub(in crate::grpc) fn describe(
    message: proto::DescribeWorkspaceKeysRequest,
) -> Result<DescribeWorkspaceKeys, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    faults.finish(workspace.map(|workspace| DescribeWorkspaceKeys { workspace }))
}

pub(in crate::grpc) fn rotate(
    message: proto::RotateDataKeyRequest,
) -> Result<RotateDataKey, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    let data_key = faults.optional("data_key_id", &message.data_key_id, DataKeyId::parse);
    faults.finish(workspace.map(|workspace| RotateDataKey { workspace, data_key }))
}

pub(in crate::grpc) fn shred(
    message: proto::ShredWorkspaceRequest,
) -> Result<ShredWorkspace, Error> {
    let mut faults = Faults::default();
    let workspace = faults.check("workspace", WorkspaceId::parse(&message.workspace));
    if message.confirm != message.workspace {
        faults.0.push(FieldViolation::new("confirm", "must be the workspace once more"));
    }
    faults.finish(workspace.map(|workspace| ShredWorkspace { workspace }))
}

pub(in crate::grpc) fn shredded(all: ShreddedWorkspace) -> proto::ShredWorkspaceResponse {
    proto::ShredWorkspaceResponse {
        workspace: all.workspace.to_string(),
        shred_time: Some(timestamp(all.time)),
        shredded_by: all.by,
        destroyed_records: all.records,
    }
}

pub(in crate::grpc) fn keys(all: WorkspaceKeys) -> proto::WorkspaceKeys {
    let key = |StoredKey { wrapped, retire_time, .. }: StoredKey| {
        let state = match retire_time {
            None => proto::DataKeyState::Active,
            Some(_) => proto::DataKeyState::Retired,
        };
        proto::WorkspaceKey {
            data_key_id: wrapped.id.to_string(),
            state: state.into(),
            kms_key: wrapped.kms_key_id,
            create_time: Some(timestamp(wrapped.create_time)),
            retire_time: retire_time.map(timestamp),
        }
    };
    proto::WorkspaceKeys {
        workspace: all.workspace.to_string(),
        keys: all.keys.into_iter().map(key).collect(),
    }
}
