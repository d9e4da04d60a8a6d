//! Administration of data keys; one file per operation. Role: `operator`.

mod describe;
mod rotate;
mod shred;

pub use describe::{DescribeWorkspaceKeys, WorkspaceKeys};
pub use rotate::RotateDataKey;
pub use shred::{ShredWorkspace, ShreddedWorkspace};

use super::{Error, Grants};

/// Most data keys of a workspace: each costs a KMS call per quarter of an hour
/// where its records are read.
const MAX_DATA_KEYS: usize = 100;

fn authorize(grants: &Grants) -> Result<(), Error> {
    if grants.manage_keys() { Ok(()) } else { Err(Error::NotGranted) }
}
