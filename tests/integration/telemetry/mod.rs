//! What the service tells of itself: over OTLP to a collector, at `/metrics` to
//! Prometheus, and in its log.

mod admin;
mod catalogue;
mod counted;
mod http;
mod regressed;
mod sent;
mod slow;
