//! A connection, and its end.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::coop,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{either::Either, sync::WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{identity::Peer, shares::Place, transients::Stay};
use crate::domain::CallerId;

pub(super) type Io = Either<Box<TlsStream<TcpStream>>, TcpStream>;

/// Whose share a connection counts to.
pub(super) enum Owner {
    Caller(#[expect(dead_code, reason = "held for its drop")] Place<CallerId>),
    Nobody(Stay<()>),
}

/// The place among all connections, in the share of its owner, and on its runtime.
pub(super) type Places = (Place<IpAddr>, Owner, Arc<()>);

/// What one read, of at most 16 KiB, takes of a task's turn. A whole turn would
/// be 2 MiB: frames enough to keep all others waiting.
const READ: usize = 8;

/// Bytes that HTTP/2 begins with.
const PREFACE: usize = 24;

/// A connection that is ready for HTTP/2. Each request on it carries its
/// [`Peer`] among the extensions.
///
/// It fails with [`io::ErrorKind::TimedOut`] when its life is over, whatever
/// goes on; when HTTP/2 has not begun in time; and when it must go for another
/// that has no identity either.
pub struct Connection {
    io: Io,
    peer: Peer,
    end: Pin<Box<Sleep>>,
    /// Until HTTP/2 has begun: when it must have, and the bytes read of it.
    begin: Option<(Pin<Box<Sleep>>, usize)>,
    over: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    _places: Places,
}

impl Connection {
    /// One that may last for `life`, and on which HTTP/2 must begin within
    /// `begin`.
    pub(super) fn new(io: Io, peer: Peer, life: Duration, begin: Duration, places: Places) -> Self {
        let over = match &places.1 {
            Owner::Caller(_) => None,
            Owner::Nobody(stay) => Some(Box::pin(stay.over())),
        };
        let begin = Some((Box::pin(sleep(begin)), 0));
        Self { io, peer, end: Box::pin(sleep(life)), begin, over, _places: places }
    }

    /// The connection itself, while it may be used.
    fn alive(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut Io>> {
        let late = self.begin.as_mut().is_some_and(|(by, _)| by.as_mut().poll(context).is_ready());
        let over = self.over.as_mut().is_some_and(|over| over.as_mut().poll(context).is_ready());
        if late || over || self.end.as_mut().poll(context).is_ready() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Pin::new(&mut self.io))
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
        let connection = self.get_mut();
        for _ in 1..READ {
            ready!(coop::poll_proceed(context)).made_progress();
        }
        let before = buffer.filled().len();
        let outcome = connection.alive(context)?.poll_read(context, buffer);
        if let Some((_, read)) = &mut connection.begin {
            *read += buffer.filled().len().saturating_sub(before);
            if *read >= PREFACE {
                connection.begin = None;
            }
        }
        outcome
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
