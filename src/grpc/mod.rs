//! Floor 4: gRPC. Translate, call, translate back.

pub mod accept;
mod answer;
mod connection;
mod convert;
mod documents;
mod handlers;
pub mod identity;
mod limits;
mod observe;
pub mod proto;
mod redact;
mod seldom;
mod server;
mod shares;
mod status;
pub mod tls;

pub use observe::CallSpan;
pub use server::{Health, ServerConfig, State, serve};
