//! Methods, as the semantic conventions name them.

use std::sync::Arc;

use opentelemetry::KeyValue;

/// A method of a service that this server has, or any other one.
#[derive(Clone)]
pub struct RpcMethod(Option<Arc<str>>);

impl RpcMethod {
    /// One that this server has, as in `package.Service/Method`.
    pub fn known(name: &str) -> Self {
        Self(Some(name.into()))
    }

    /// One that it has not: what a caller asks for is no attribute.
    pub fn other() -> Self {
        Self(None)
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or("_OTHER")
    }

    pub(super) fn attributes(&self) -> [KeyValue; 2] {
        let method = match &self.0 {
            Some(name) => KeyValue::new("rpc.method", Arc::clone(name)),
            None => KeyValue::new("rpc.method", "_OTHER"),
        };
        [KeyValue::new("rpc.system.name", "grpc"), method]
    }
}
