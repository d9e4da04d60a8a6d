//! The `probe` command, a health check for exec probes. Kubernetes' own gRPC
//! probes cannot speak TLS.

use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::connect;
use crate::config::ProbeConfig;

/// Why there is no SERVING answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The server cannot be reached, or refuses.
    #[error("{0}")]
    Unreachable(String),
    /// It answers something else.
    #[error("not serving")]
    NotServing,
}

/// Asks a server for its health. Needs no client certificate.
///
/// # Errors
/// [`ProbeError`] unless the answer is SERVING.
pub async fn probe(config: ProbeConfig) -> Result<(), ProbeError> {
    let timeout = config.timeout;
    let unreachable = |_| ProbeError::Unreachable("no answer in time".into());
    tokio::time::timeout(timeout, ask(config)).await.map_err(unreachable)?
}

async fn ask(config: ProbeConfig) -> Result<(), ProbeError> {
    let ProbeConfig { server, service, timeout } = config;
    let endpoint = connect::endpoint(&server).timeout(timeout);
    let channel = connect::channel(server, endpoint).await.map_err(ProbeError::Unreachable)?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await;
    let answer = answer.map_err(|status| ProbeError::Unreachable(status.to_string()))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        _ => Err(ProbeError::NotServing),
    }
}
