//! Administration of data keys; one file per operation. Role: `operator`.

mod describe;
mod due;
mod job;
mod moving;
mod reencrypt;
mod rewrap;
mod rotate;
mod shred;

pub use describe::{DescribeWorkspaceKeys, WorkspaceKeys};
pub use due::Rotation;
pub use job::Steps;
pub use reencrypt::{KeyFate, ReencryptFailure, ReencryptWorkspace, Reencrypted};
pub use rewrap::{RewrapDataKeys, RewrapFailure, Rewrapped};
pub use rotate::RotateDataKey;
pub use shred::{ShredWorkspace, ShreddedWorkspace};

pub(super) use moving::{moving, only_moving, unmoved};

use super::{AuditEvent, Error, Grants, Secrets};

/// Most data keys of a workspace: each costs a KMS call per quarter of an hour
/// where its records are read.
const MAX_DATA_KEYS: usize = 100;

fn authorize(grants: &Grants) -> Result<(), Error> {
    if grants.manage_keys() { Ok(()) } else { Err(Error::NotGranted) }
}
