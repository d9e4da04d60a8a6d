//! Floor 5: the `probe` command, a health check for exec probes. Kubernetes'
//! own gRPC probes cannot speak TLS.

use std::{io, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use tonic::transport::{Endpoint, Uri};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::config::ProbeArgs;

/// Why there is no SERVING answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The arguments are wrong.
    #[error("{0}")]
    Arguments(String),
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
pub async fn probe(args: ProbeArgs) -> Result<(), ProbeError> {
    let timeout = humantime::parse_duration(&args.timeout)
        .map_err(|_| ProbeError::Arguments("--timeout: must be a duration such as 2s".into()))?;
    let unreachable = |_| ProbeError::Unreachable("no answer in time".into());
    tokio::time::timeout(timeout, ask(args, timeout)).await.map_err(unreachable)?
}

async fn ask(args: ProbeArgs, timeout: Duration) -> Result<(), ProbeError> {
    let wrong = |text: &str| ProbeError::Arguments(text.into());
    let uri: Uri = args.address.parse().map_err(|_| wrong("--address: must be a URL"))?;
    let host = uri.host().ok_or_else(|| wrong("--address: must name a host"))?;
    let port = uri.port_u16().unwrap_or(8443);
    let address = format!("{host}:{port}");
    let tls = match uri.scheme_str() {
        Some("http") => None,
        Some("https") => {
            let name = args.server_name.as_deref().unwrap_or(host).trim_matches(['[', ']']);
            let name = ServerName::try_from(name.to_owned())
                .map_err(|_| wrong("--server-name: must be a host name or address"))?;
            Some((client_config(args.ca.as_deref())?, name))
        }
        _ => return Err(wrong("--address: must start with https:// or http://")),
    };
    let connector = tower::service_fn(move |_: Uri| connect(address.clone(), tls.clone()));
    let failed = |error: &dyn std::error::Error| ProbeError::Unreachable(error.to_string());
    let channel = Endpoint::from(uri)
        .timeout(timeout)
        .connect_with_connector(connector)
        .await
        .map_err(|error| failed(std::error::Error::source(&error).unwrap_or(&error)))?;
    let request = HealthCheckRequest { service: args.service };
    let answer =
        HealthClient::new(channel).check(request).await.map_err(|status| failed(&status))?;
    match answer.into_inner().status() {
        ServingStatus::Serving => Ok(()),
        _ => Err(ProbeError::NotServing),
    }
}

async fn connect(
    address: String,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
) -> io::Result<TokioIo<Either<tokio_rustls::client::TlsStream<TcpStream>, TcpStream>>> {
    let stream = TcpStream::connect(address).await?;
    Ok(TokioIo::new(match tls {
        Some((config, name)) => {
            Either::Left(TlsConnector::from(config).connect(name, stream).await?)
        }
        None => Either::Right(stream),
    }))
}

fn client_config(ca: Option<&str>) -> Result<Arc<ClientConfig>, ProbeError> {
    let required = || ProbeError::Arguments("--ca: is required for https".into());
    let path = ca.ok_or_else(required)?;
    let wrong = |text: String| ProbeError::Arguments(format!("--ca {path}: {text}"));
    let mut roots = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
