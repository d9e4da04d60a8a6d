//! The way in: mutual TLS from files, and connections that know their peer.

use std::{
    fmt, fs, io,
    io::Read as _,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::stream::{self, Stream};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{either::Either, sync::CancellationToken};
use tonic::transport::server::Connected;
use zeroize::Zeroizing;

use super::identity::Peer;
use crate::domain::CallerId;

/// PEM files of the server's identity and of the CA of its clients.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key, unencrypted. Refused if its mode gives others
    /// any right; the group may read it, as Kubernetes' `fsGroup` needs.
    pub key: PathBuf,
    /// One or more CA certificates that clients' certificates are verified by.
    pub client_ca: PathBuf,
}

/// What is wrong with the TLS files: each file with its fault. Never holds
/// what a file contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsError(Vec<(PathBuf, String)>);

impl TlsError {
    /// The files and their faults; at least one.
    pub fn faults(&self) -> &[(PathBuf, String)] {
        &self.0
    }
}

impl std::error::Error for TlsError {}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (file, fault)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {fault}", file.display())?;
        }
        Ok(())
    }
}

/// Reads the files into a server configuration: TLS 1.3 and 1.2, HTTP/2 only.
///
/// A client may come without a certificate: it reaches the gRPC layer, which
/// answers health checks and refuses the rest as UNAUTHENTICATED. A client
/// whose certificate does not verify is refused in the handshake.
///
/// Sessions are never resumed. A resumed session would carry a client's
/// certificate over from an earlier handshake, unchecked against a CA file
/// that has changed since, and callers keep their connections anyway.
///
/// # Errors
/// Each file with a fault, and that fault.
pub fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let loaded = (
        certificates(&files.cert),
        private_key(&files.key),
        client_verifier(&files.client_ca, Arc::clone(&provider)),
    );
    let (chain, key, verifier) = match loaded {
        (Ok(chain), Ok(key), Ok(verifier)) => (chain, key, verifier),
        (chain, key, verifier) => {
            let faults = [
                (&files.cert, chain.err()),
                (&files.key, key.err()),
                (&files.client_ca, verifier.err()),
            ];
            let found = |(file, fault): (&PathBuf, Option<_>)| Some((file.clone(), fault?));
            return Err(TlsError(faults.into_iter().filter_map(found).collect()));
        }
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map(|builder| builder.with_client_cert_verifier(verifier))
        .and_then(|builder| builder.with_single_cert(chain, key))
        .map_err(|error| {
            let fault = format!("does not fit {}: {error}", files.cert.display());
            TlsError(vec![(files.key.clone(), fault)])
        })?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn read(
    file: &Path,
    refuse: fn(u32) -> Option<&'static str>,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let told = |error: io::Error| error.to_string();
    let mut opened = fs::File::open(file).map_err(told)?;
    if let Some(fault) = refuse(opened.metadata().map_err(told)?.permissions().mode()) {
        return Err(fault.to_owned());
    }
    let mut bytes = Zeroizing::new(Vec::new());
    opened.read_to_end(&mut bytes).map_err(told)?;
    Ok(bytes)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(file, |_| None)?;
    // The parser's own errors quote the file.
    let chain = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err("holds no certificates in PEM".to_owned()),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = read(file, |mode| {
        (mode & 0o007 != 0).then_some("is open to others: its mode must end in 0, such as 0640")
    })?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| "holds no unencrypted private key in PEM".to_owned())
}

fn client_verifier(
    file: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(file)?.into_iter().enumerate() {
        let number = index.saturating_add(1);
        roots.add(certificate).map_err(|error| format!("certificate {number}: {error}"))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| error.to_string())
}

/// Bounds on connections that are not yet trusted.
#[derive(Debug, Clone, Copy)]
pub struct AcceptLimits {
    /// A TLS handshake not done by then is cut.
    pub handshake_timeout: Duration,
    /// Handshakes under way at once; further ones wait, within their time.
    pub max_handshakes: usize,
    /// Connections at once, handshakes included; further ones are closed.
    pub max_connections: usize,
}

impl Default for AcceptLimits {
    /// 5 s, 256 and 4,096.
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            max_handshakes: 256,
            max_connections: 4_096,
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
        handshake_timeout: limits.handshake_timeout,
        handshakes: Semaphore::new(limits.max_handshakes),
        slots: Arc::new(Semaphore::new(limits.max_connections)),
        ready,
        shutdown,
    };
    tokio::spawn(Arc::new(acceptor).run(listener));
    stream::poll_fn(move |cx| connections.poll_recv(cx).map(|next| next.map(Ok)))
}

struct Acceptor {
    security: Security,
    handshake_timeout: Duration,
    handshakes: Semaphore,
    slots: Arc<Semaphore>,
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
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            tracing::warn!(%address, "connection closed: too many");
            return;
        };
        let acceptor = Arc::clone(self);
        tokio::spawn(async move {
            let connect = async {
                match acceptor.secure(tcp).await {
                    // The server may have stopped taking connections.
                    Ok((io, peer)) => {
                        let _ = acceptor.ready.send(Connection { io, peer, _slot: slot }).await;
                    }
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        tracing::info!(%address, %error, "TLS handshake refused");
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

    async fn secure(&self, tcp: TcpStream) -> io::Result<(Io, Peer)> {
        tcp.set_nodelay(true)?;
        let tls = match &self.security {
            Security::Plain(caller) => {
                return Ok((Either::Right(tcp), Peer::Verified(caller.clone())));
            }
            Security::Tls(tls) => tls,
        };
        let handshake = async {
            // Whoever says nothing takes none of the handshakes' places.
            tcp.peek(&mut [0]).await?;
            let _place = self.handshakes.acquire().await.map_err(io::Error::other)?;
            TlsAcceptor::from(tls.load_full()).accept(tcp).await
        };
        let stream = tokio::time::timeout(self.handshake_timeout, handshake).await??;
        let peer = Peer::from_certificates(stream.get_ref().1.peer_certificates());
        Ok((Either::Left(Box::new(stream)), peer))
    }
}

type Io = Either<Box<TlsStream<TcpStream>>, TcpStream>;

/// A connection that is ready for HTTP/2. Each request on it carries its
/// [`Peer`] among the extensions.
pub struct Connection {
    io: Io,
    peer: Peer,
    _slot: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
