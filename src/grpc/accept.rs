//! The way in: connections that know their peer, and how many there may be.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::stream::Stream;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{either::Either, sync::CancellationToken};

pub use super::connection::Connection;
use super::{
    connection::{Io, Owner},
    identity::Peer,
    seldom::Seldom,
    server,
    shares::Shares,
    transients::Transients,
};
use crate::domain::CallerId;

/// Bounds on connections: how many, and how long.
#[derive(Debug, Clone, Copy)]
pub struct AcceptLimits {
    /// A TLS handshake not done by then is cut.
    pub handshake_timeout: Duration,
    /// Handshakes under way at once. For one more, the oldest is cut: a flood
    /// shortens the time of a handshake, but keeps nobody out who is quick.
    pub max_handshakes: usize,
    /// HTTP/2 must have begun by then, or the connection is cut.
    pub preface_timeout: Duration,
    /// Connections at once, handshakes included; further ones are closed.
    pub max_connections: usize,
    /// Of these, from one address, or from one /64 network of IPv6: whoever has
    /// one address of it has them all.
    pub max_connections_per_address: usize,
    /// Of these, by one caller.
    pub max_connections_per_caller: usize,
    /// Connections without an identity at once. For one more, the oldest is
    /// cut: nobody can keep health checks out.
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
    /// 5 s; 1,024; 10 s; 4,096, 2,048 and 3,072; 64 for 30 s; as
    /// [`server::ServerConfig`] has it; 30 s.
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            max_handshakes: 1_024,
            preface_timeout: Duration::from_secs(10),
            max_connections: 4_096,
            max_connections_per_address: 2_048,
            max_connections_per_caller: 3_072,
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
) -> Incoming {
    spread(listener, tls, limits, shutdown, &[Handle::current()]).swap_remove(0)
}

/// The same for several runtimes, a stream for each: a connection lives, from its
/// handshake on, on the one that has fewest.
pub fn spread(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    limits: AcceptLimits,
    shutdown: CancellationToken,
    runtimes: &[Handle],
) -> Vec<Incoming> {
    accept(listener, Security::Tls(tls), limits, shutdown, runtimes)
}

/// Connections of one runtime. Never yields an error, and ends on shutdown.
pub struct Incoming(mpsc::Receiver<Connection>);

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|next| next.map(Ok))
    }
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
) -> Result<Incoming, PlainError> {
    let address = listener.local_addr()?;
    if !address.ip().to_canonical().is_loopback() {
        return Err(PlainError::NotLoopback(address));
    }
    let here = [Handle::current()];
    Ok(accept(listener, Security::Plain(caller), limits, shutdown, &here).swap_remove(0))
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
    runtimes: &[Handle],
) -> Vec<Incoming> {
    let (mut doors, mut all) = (Vec::new(), Vec::new());
    for runtime in runtimes {
        let (ready, connections) = mpsc::channel(1);
        doors.push(Door { runtime: runtime.clone(), ready, open: Arc::new(()) });
        all.push(Incoming(connections));
    }
    let acceptor = Acceptor {
        security,
        limits,
        handshakes: Transients::new(limits.max_handshakes),
        slots: Shares::new(limits.max_connections, limits.max_connections_per_address),
        callers: Shares::new(limits.max_connections, limits.max_connections_per_caller),
        unidentified: Transients::new(limits.max_unidentified),
        closed: Seldom::default(),
        refused: Seldom::default(),
        doors,
        shutdown,
    };
    tokio::spawn(Arc::new(acceptor).run(listener));
    all
}

/// The way to one runtime.
#[derive(Clone)]
struct Door {
    runtime: Handle,
    ready: mpsc::Sender<Connection>,
    /// Each connection holds it.
    open: Arc<()>,
}

struct Acceptor {
    security: Security,
    limits: AcceptLimits,
    handshakes: Arc<Transients<()>>,
    slots: Arc<Shares<IpAddr>>,
    callers: Arc<Shares<CallerId>>,
    unidentified: Arc<Transients<()>>,
    closed: Seldom,
    refused: Seldom,
    doors: Vec<Door>,
    shutdown: CancellationToken,
}

impl Acceptor {
    async fn run(self: Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = self.closed() => return,
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

    /// When nobody takes connections any more.
    async fn closed(&self) {
        for door in &self.doors {
            door.ready.closed().await;
        }
    }

    /// Goes on apart from the accept loop: no client holds up another.
    fn admit(self: &Arc<Self>, tcp: TcpStream, address: SocketAddr) {
        let Some(slot) = self.slots.take(&network(address.ip())) else {
            self.full(address);
            return;
        };
        let (handshake, crowded) = self.handshakes.enter(());
        if crowded {
            self.crowded("connection closed: too many are in their handshake");
        }
        let emptiest = self.doors.iter().min_by_key(|door| Arc::strong_count(&door.open));
        let Some(Door { runtime, ready, open }) = emptiest.cloned() else { return };
        // To be taken in by the other runtime.
        let Ok(tcp) = tcp.into_std() else { return };
        let acceptor = Arc::clone(self);
        runtime.spawn(async move {
            let over = handshake.over();
            let connect = async {
                let Ok(tcp) = TcpStream::from_std(tcp) else { return };
                let secured = acceptor.secure(tcp, address).await;
                drop(handshake);
                match secured {
                    Ok((io, peer, life)) => {
                        let Some(owner) = acceptor.owner(&peer) else {
                            acceptor.full(address);
                            return;
                        };
                        let begin = acceptor.limits.preface_timeout;
                        let places = (slot, owner, open);
                        let connection = Connection::new(io, peer, life, begin, places);
                        // The server may have stopped taking connections.
                        let _ = ready.send(connection).await;
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
                () = over => {}
                () = connect => {}
            }
        });
    }

    /// Whose share a connection counts to; `None`: all of it is taken.
    fn owner(&self, peer: &Peer) -> Option<Owner> {
        match peer {
            Peer::Verified(id) => self.callers.take(id).map(Owner::Caller),
            Peer::Unidentified { .. } => {
                let (stay, crowded) = self.unidentified.enter(());
                if crowded {
                    self.crowded("connection closed: too many are without identity");
                }
                Some(Owner::Nobody(stay))
            }
        }
    }

    fn crowded(&self, what: &'static str) {
        if let Some(unlogged) = self.closed.now() {
            tracing::warn!(unlogged, "{what}");
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
        let handshake = TlsAcceptor::from(tls.load_full()).accept(tcp);
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

/// What one client is counted by.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_counts_as_one_client() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
