//! What several tests need.

pub(crate) mod kms_endpoint;
