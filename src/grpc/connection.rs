//! A connection, and its end.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use super::{identity::Peer, shares::Place};

pub(super) type Io = Either<Box<TlsStream<TcpStream>>, TcpStream>;

/// The place among all connections, and the one among the unidentified.
pub(super) type Places = (Place<IpAddr>, Option<Place<IpAddr>>);

/// A connection that is ready for HTTP/2. Each request on it carries its
/// [`Peer`] among the extensions.
///
/// When its life is over, it fails with [`io::ErrorKind::TimedOut`], whatever
/// goes on: even a peer that never begins to speak HTTP/2 is cut.
pub struct Connection {
    io: Io,
    peer: Peer,
    end: Pin<Box<Sleep>>,
    _places: Places,
}

impl Connection {
    pub(super) fn new(io: Io, peer: Peer, life: Duration, places: Places) -> Self {
        Self { io, peer, end: Box::pin(sleep(life)), _places: places }
    }

    /// The connection itself, while it may be used.
    fn alive(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut Io>> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(Pin::new(&mut self.io)),
        }
    }
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
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().alive(context)?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().alive(context)?.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().alive(context)?.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().alive(context)?.poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().alive(context)?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
