//! The way in: connections that know their peer, and how many there may be.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::stream::{self, Stream};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{either::Either, sync::CancellationToken};

pub use super::connection::Connection;
use super::{
    connection::Io,
    identity::Peer,
    seldom::Seldom,
    server,
    shares::{Place, Shares},
};
use crate::domain::CallerId;

/// Bounds on connections: how many, and how long.
#[derive(Debug, Clone, Copy)]
pub struct AcceptLimits {
    /// A TLS handshake not done by then is cut.
    pub handshake_timeout: Duration,
    /// Handshakes under way at once; further ones wait, within their time.
    pub max_handshakes: usize,
    /// Connections at once, handshakes included; further ones are closed.
    pub max_connections: usize,
    /// Of these, from one address.
    pub max_connections_per_address: usize,
    /// Connections without an identity at once; half of them from one address.
    pub max_unidentified: usize,
    /// Then a connection without an identity is cut.
    pub unidentified_life: Duration,
    /// Then any connection is cut, whatever goes on; see
    /// [`server::ServerConfig::connection_life`].
    pub life: Duration,
    /// How long a connection may outlive its client's certificate: the clocks'
    /// difference, and the calls under way.
    pub expiry_grace: Duration,
}

impl Default for AcceptLimits {
    /// 5 s; 256; 4,096 and 2,048; 64 for 30 s; as
    /// [`server::ServerConfig`] has it; 30 s.
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            max_handshakes: 256,
            max_connections: 4_096,
            max_connections_per_address: 2_048,
            max_unidentified: 64,
            unidentified_life: Duration::from_secs(30),
            life: server::ServerConfig::default().connection_life(),
            expiry_grace: Duration::from_secs(30),
        }
    }
}

/// How long accepting rests after an error such as too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Connections over TLS, each after its handshake. A changed `tls` counts for
/// handshakes from then on; open connections stay as they are.
///
/// The stream never yields an error. It ends on shutdown; connections it
/// yielded before are not touched. Must be called within a Tokio runtime.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    limits: AcceptLimits,
    shutdown: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send + Unpin + 'static {
    accept(listener, Security::Tls(tls), limits, shutdown)
}

/// Why plaintext is not served.
#[derive(Debug, thiserror::Error)]
pub enum PlainError {
    /// Others than this machine could connect.
    #[error("plaintext is served on loopback only, not on {0}")]
    NotLoopback(SocketAddr),
    /// The listener does not tell its address.
    #[error("listener: {0}")]
    Io(#[from] io::Error),
}

/// Connections in plaintext, for `dev`: each one is taken to be `caller`.
/// Otherwise as [`incoming`].
///
/// # Errors
/// The listener is not on a loopback address.
pub fn plain(
    listener: TcpListener,
    caller: CallerId,
    limits: AcceptLimits,
    shutdown: CancellationToken,
) -> Result<impl Stream<Item = io::Result<Connection>> + Send + Unpin + 'static, PlainError> {
    let address = listener.local_addr()?;
    if !address.ip().to_canonical().is_loopback() {
        return Err(PlainError::NotLoopback(address));
    }
    Ok(accept(listener, Security::Plain(caller), limits, shutdown))
}

enum Security {
    Tls(Arc<ArcSwap<ServerConfig>>),
    Plain(CallerId),
}

fn accept(
    listener: TcpListener,
    security: Security,
    limits: AcceptLimits,
    shutdown: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send + Unpin + 'static {
    let (ready, mut connections) = mpsc::channel(1);
    let acceptor = Acceptor {
        security,
        limits,
        handshakes: Semaphore::new(limits.max_handshakes),
        slots: Shares::new(limits.max_connections, limits.max_connections_per_address),
        unidentified: Shares::new(limits.max_unidentified, limits.max_unidentified.div_ceil(2)),
        closed: Seldom::default(),
        refused: Seldom::default(),
        ready,
        shutdown,
    };
    tokio::spawn(Arc::new(acceptor).run(listener));
    stream::poll_fn(move |cx| connections.poll_recv(cx).map(|next| next.map(Ok)))
}

struct Acceptor {
    security: Security,
    limits: AcceptLimits,
    handshakes: Semaphore,
    slots: Arc<Shares<IpAddr>>,
    unidentified: Arc<Shares<IpAddr>>,
    closed: Seldom,
    refused: Seldom,
    ready: mpsc::Sender<Connection>,
    shutdown: CancellationToken,
}

impl Acceptor {
    async fn run(self: Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = self.ready.closed() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, address)) => self.admit(tcp, address),
                // That client's trouble, not ours.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::select! {
                        () = self.shutdown.cancelled() => return,
                        () = tokio::time::sleep(ACCEPT_BACKOFF) => {}
                    }
                }
            }
        }
    }

    /// Goes on apart from the accept loop: no client holds up another.
    fn admit(self: &Arc<Self>, tcp: TcpStream, address: SocketAddr) {
        let Some(slot) = self.slots.take(&address.ip()) else {
            self.full(address);
            return;
        };
        let acceptor = Arc::clone(self);
        tokio::spawn(async move {
            let connect = async {
                match acceptor.secure(tcp, address).await {
                    Ok((io, peer, life)) => {
                        let Some(place) = acceptor.place(&peer) else {
                            acceptor.full(address);
                            return;
                        };
                        let connection = Connection::new(io, peer, life, (slot, place));
                        // The server may have stopped taking connections.
                        let _ = acceptor.ready.send(connection).await;
                    }
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        if let Some(unlogged) = acceptor.refused.now() {
                            tracing::info!(%address, %error, unlogged, "TLS handshake refused");
                        }
                    }
                    Err(error) => tracing::debug!(%address, %error, "no TLS handshake"),
                }
            };
            tokio::select! {
                () = acceptor.shutdown.cancelled() => {}
                () = connect => {}
            }
        });
    }

    /// A further place that a connection without an identity needs.
    fn place(&self, peer: &Peer) -> Option<Option<Place<IpAddr>>> {
        match peer {
            Peer::Verified(_) => Some(None),
            Peer::Unidentified { address, .. } => self.unidentified.take(&address.ip()).map(Some),
        }
    }

    fn full(&self, address: SocketAddr) {
        if let Some(unlogged) = self.closed.now() {
            tracing::warn!(%address, unlogged, "connection closed: too many");
        }
    }

    /// The connection, its peer, and how long it may last.
    async fn secure(
        &self,
        tcp: TcpStream,
        address: SocketAddr,
    ) -> io::Result<(Io, Peer, Duration)> {
        tcp.set_nodelay(true)?;
        let tls = match &self.security {
            Security::Plain(caller) => {
                let peer = Peer::Verified(caller.clone());
                return Ok((Either::Right(tcp), peer, self.limits.life));
            }
            Security::Tls(tls) => tls,
        };
        let handshake = async {
            // Whoever says nothing takes none of the handshakes' places.
            tcp.peek(&mut [0]).await?;
            let _place = self.handshakes.acquire().await.map_err(io::Error::other)?;
            TlsAcceptor::from(tls.load_full()).accept(tcp).await
        };
        let stream = tokio::time::timeout(self.limits.handshake_timeout, handshake).await??;
        let chain = stream.get_ref().1.peer_certificates();
        let (peer, valid) = Peer::from_certificates(chain, address);
        let life = match &peer {
            Peer::Verified(_) => {
                self.limits.life.min(valid.saturating_add(self.limits.expiry_grace))
            }
            Peer::Unidentified { .. } => self.limits.unidentified_life,
        };
        Ok((Either::Left(Box::new(stream)), peer, life))
    }
}
