//! Floor 4: gRPC. Translate, call, translate back.

pub mod accept;
mod answer;
mod connection;
mod convert;
mod documents;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod handlers;
pub mod identity;
mod limits;
pub mod proto;
mod redact;
mod seldom;
mod server;
mod shares;
mod status;
pub mod tls;

pub use server::{Health, ServerConfig, serve};
