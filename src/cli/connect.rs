//! The way to a server, as somebody.

use std::{error::Error as _, io, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};

use super::CliError;
use crate::{
    config::{Connection, Server},
    domain::Actor,
};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest wait for an answer. The server gives up after 10 s.
const CALL: Duration = Duration::from_secs(15);

/// How long a connection may be silent under an open call before it is tested,
/// and how long the test may take: a job whose server has gone would wait forever.
const SILENCE: Duration = Duration::from_secs(10);

/// Puts the person's name on each call.
#[derive(Clone)]
pub(super) struct Named(Option<Actor>);

impl Interceptor for Named {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(actor) = &self.0 {
            let metadata = request.metadata_mut();
            match MetadataValue::try_from(actor.as_str()) {
                Ok(name) if actor.as_str().is_ascii() => {
                    metadata.insert("x-actor", name);
                }
                _ => {
                    let name = MetadataValue::from_bytes(actor.as_str().as_bytes());
                    metadata.insert_bin("x-actor-bin", name);
                }
            }
        }
        Ok(request)
    }
}

/// A channel whose calls bear the person's name.
pub(super) type NamedChannel = InterceptedService<Channel, Named>;

/// Connects. The channel connects again by itself when that is lost.
pub(super) async fn connect(connection: Connection) -> Result<NamedChannel, CliError> {
    let Connection { server, actor } = connection;
    let endpoint = endpoint(&server)
        .connect_timeout(CONNECT)
        .timeout(CALL)
        .http2_keep_alive_interval(SILENCE)
        .keep_alive_timeout(SILENCE);
    let address = server.authority.clone();
    let unreachable = |why| CliError::Unavailable(format!("{address} cannot be reached: {why}"));
    let channel = channel(server, endpoint).await.map_err(unreachable)?;
    Ok(InterceptedService::new(channel, Named(actor)))
}

/// Where calls say they go. The way there is [`channel`]'s alone: of an
/// `https://` URI tonic would make TLS itself.
pub(super) fn endpoint(server: &Server) -> Endpoint {
    Endpoint::from_static("http://server").origin(server.uri.clone())
}

/// A connected channel, or why there is none.
pub(super) async fn channel(server: Server, endpoint: Endpoint) -> Result<Channel, String> {
    let Server { authority, tls, .. } = server;
    let connector = tower::service_fn(move |_: Uri| {
        let (authority, tls) = (authority.clone(), tls.clone());
        async move {
            let stream = TcpStream::connect(authority).await?;
            stream.set_nodelay(true)?;
            io::Result::Ok(TokioIo::new(match tls {
                Some((config, name)) => {
                    let stream = TlsConnector::from(config).connect(name, stream).await?;
                    Either::<TlsStream<TcpStream>, TcpStream>::Left(stream)
                }
                None => Either::Right(stream),
            }))
        }
    });
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map_err(|error| match error.source() {
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    })
}
