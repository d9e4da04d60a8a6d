//! Doors for the fuzz targets: what lies within a sealed value.

use super::seal;

/// A payload, read and written again.
pub fn payload(bytes: &[u8]) -> Option<Vec<u8>> {
    seal::decode(bytes).map(|payload| seal::encode(&payload).to_vec())
}
