//! What tests share.

pub(crate) mod bench;
pub(crate) mod cut_proxy;
pub(crate) mod documents;
pub(crate) mod edge;
pub(crate) mod encodings;
pub(crate) mod fake_kms;
pub(crate) mod kms_endpoint;
pub(crate) mod load;
pub(crate) mod lossy_proxy;
pub(crate) mod manual_clock;
pub(crate) mod memory_store;
pub(crate) mod needles;
pub(crate) mod otlp_sink;
pub(crate) mod pki;
pub(crate) mod platform;
pub(crate) mod program;
pub(crate) mod raw_call;
pub(crate) mod raw_redis;
pub(crate) mod redis_cluster;
pub(crate) mod redis_server;
pub(crate) mod sentinels;
pub(crate) mod service;
pub(crate) mod store;
pub(crate) mod told;
pub(crate) mod tools;
