//! Generated types of package `workflowsecrets.v1`, and what the generator
//! does not know: messages that carry a value overwrite it on drop.

use zeroize::Zeroize as _;

#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_imports,
    reason = "generated; its documentation is proto/workflowsecrets/v1"
)]
mod generated {
    tonic::include_proto!("workflowsecrets.v1");
}

pub use generated::*;

/// Descriptor of the API, for reflection.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api_descriptor.bin"));

impl Drop for CreateSecretRequest {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

impl Drop for UpdateSecretRequest {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

impl Drop for ResolvedSecret {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}
