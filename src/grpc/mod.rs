//! Floor 4: gRPC. Translate, call, translate back.

mod convert;
mod handlers;
pub mod identity;
mod limits;
pub mod proto;
mod server;
mod status;
pub mod tls;

pub use server::{Health, ServerConfig, serve};
