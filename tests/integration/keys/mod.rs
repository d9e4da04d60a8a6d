//! Administration of data keys.

mod rotation;
mod shredding;
