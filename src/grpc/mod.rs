//! Floor 4: gRPC. Translate, call, translate back.

pub mod accept;
mod answer;
mod aside;
mod codec;
mod connection;
mod convert;
mod documents;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod handlers;
pub mod identity;
mod intake;
mod limits;
mod observe;
pub mod proto;
mod redact;
mod refusals;
mod server;
mod shelf;
mod status;
mod timeout;
pub mod tls;
pub mod transients;

use crate::service::{seldom, shares};
pub use observe::CallSpan;
pub use server::{Fault, Grpc, Health, ServerConfig, State, serve};
