<<<<<<< HEAD
//! What tests share.

pub(crate) mod fake_kms;
<<<<<<< HEAD
pub(crate) mod kms_endpoint;
pub(crate) mod manual_clock;
pub(crate) mod memory_store;
pub(crate) mod pki;
=======
pub(crate) mod manual_clock;
pub(crate) mod memory_store;
>>>>>>> refs/heads/envelope
=======
pub mod redis_server;
>>>>>>> refs/heads/store
