//! Answers that nobody reads.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use tokio::sync::{Semaphore, mpsc};
use tonic::{Status, body::Body};

use super::shelf::Shelf;
use crate::service::Error;

/// Bytes handed to HTTP/2 at once: a frame, so that an answer waits here, and
/// not in the connection's buffer.
const PIECE: usize = 16 * 1024;

/// How long a peer may take to read an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Patience {
    /// For all of it.
    pub(super) whole: Option<Duration>,
    /// For each piece, once there is one.
    pub(super) each: Option<Duration>,
}

/// `body`, kept together with the place of its call until the peer has read it
/// or patience ends. Then both go, and the answer ends with an error, for a peer
/// that still reads it.
///
/// A task of its own does this: HTTP/2 does not ask a body for anything, not
/// even the time, while the peer takes no more. An answer that is ready and fits
/// one piece needs none, and waits on the shelf.
///
/// `count` is told how many bytes of a message wait to be read, and refuses
/// those that are too many: the answer ends with its error.
pub(super) fn held(
    body: Body,
    place: impl Send + 'static,
    patience: Patience,
    shelf: &Shelf,
    mut count: impl FnMut(usize) -> Result<(), Error> + Send + 'static,
) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let mut body = body;
    let mut begun = VecDeque::new();
    if let Patience { whole: Some(within), each: None } = patience {
        match small(&mut body) {
            Ok((data, trailers)) => {
                let answer = match count(data.len()) {
                    Ok(()) => (Some(data), trailers),
                    Err(error) => (None, refusal(error)),
                };
                return shelf.keep(answer, (place, count), within);
            }
            Err(frames) => begun = frames,
        }
        // At once: until it is counted, others may wait for what it holds.
        if let Some(Some(Ok(first))) = begun.front()
            && let Some(data) = first.data_ref()
            && let Err(error) = count(data.len())
        {
            return shelf.keep((None, refusal(error)), (place, count), within);
        }
    }
    let (frames, unread) = mpsc::channel(1);
    let asked = Arc::new(Semaphore::new(0));
    let peer = Peer { frames, asked: Arc::clone(&asked) };
    tokio::spawn(async move {
        let _place = place;
        tokio::select! {
            () = hand_over((begun, body), &peer, patience.each, count) => {}
            () = peer.frames.closed() => {}
            () = over(patience.whole) => {}
        }
    });
    Body::new(Unread { frames: unread, asked, waits: false, complete: false })
}

type Next = Option<Result<Frame<Bytes>, Status>>;

/// The message and the trailers, if both are ready and make a small answer.
///
/// # Errors
/// What is ready of any other.
fn small(body: &mut Body) -> Result<(Bytes, HeaderMap), VecDeque<Next>> {
    // Whoever reads on asks again, with a waker of their own.
    let context = &mut Context::from_waker(Waker::noop());
    let mut next = || Pin::new(&mut *body).poll_frame(context);
    let message = match next() {
        Poll::Pending => return Err(VecDeque::new()),
        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) if data.len() <= PIECE => data,
            Ok(data) => return Err([Some(Ok(Frame::data(data)))].into()),
            Err(frame) => return Err([Some(Ok(frame))].into()),
        },
        Poll::Ready(other) => return Err([other].into()),
    };
    let begun = |message| Some(Ok(Frame::data(message)));
    match next() {
        Poll::Pending => Err([begun(message)].into()),
        Poll::Ready(Some(Ok(frame))) => match frame.into_trailers() {
            // A copy: a slice would keep all of the buffer that it was written to.
            Ok(trailers) => Ok((Bytes::copy_from_slice(&message), trailers)),
            Err(frame) => Err([begun(message), Some(Ok(frame))].into()),
        },
        Poll::Ready(other) => Err([begun(message), other].into()),
    }
}

async fn over(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Who reads the answer.
struct Peer {
    frames: mpsc::Sender<Result<Frame<Bytes>, Status>>,
    /// One permit for each frame that HTTP/2 has room for.
    asked: Arc<Semaphore>,
}

impl Peer {
    /// Waits until it takes this; `None`: it has left. Until then, the frame is
    /// the task's, and goes with it.
    async fn take(&self, frame: Result<Frame<Bytes>, Status>) -> Option<()> {
        self.asked.acquire().await.ok()?.forget();
        self.frames.send(frame).await.ok()
    }
}

async fn hand_over(
    (mut begun, mut body): (VecDeque<Next>, Body),
    peer: &Peer,
    each: Option<Duration>,
    mut count: impl FnMut(usize) -> Result<(), Error>,
) {
    // `None`: nobody takes it any more.
    let send = async |frame| {
        tokio::select! {
            biased;
            sent = peer.take(frame) => sent,
            () = over(each) => None,
        }
    };
    loop {
        let next = match begun.pop_front() {
            Some(next) => next,
            None => poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await,
        };
        let Some(frame) = next else { return };
        let sent = match frame.map(Frame::into_data) {
            Ok(Ok(mut data)) => loop {
                if let Err(error) = count(data.len()) {
                    drop((data, body));
                    let _ = send(Ok(Frame::trailers(refusal(error)))).await;
                    return;
                }
                // A copy: a slice would keep the whole answer in memory.
                let piece = Bytes::copy_from_slice(&data.split_to(data.len().min(PIECE)));
                let sent = send(Ok(Frame::data(piece))).await;
                if sent.is_none() || data.is_empty() {
                    break sent;
                }
            },
            Ok(Err(trailers)) => send(Ok(trailers)).await,
            Err(status) => send(Err(status)).await,
        };
        if sent.is_none() {
            return;
        }
    }
}

/// The trailers of an answer that was begun. A reset would not tell why.
pub(super) fn refusal(error: Error) -> HeaderMap {
    let mut trailers = Status::from(error).into_http::<()>().into_parts().0.headers;
    trailers.remove(http::header::CONTENT_TYPE);
    trailers
}

/// What comes from the task.
struct Unread {
    frames: mpsc::Receiver<Result<Frame<Bytes>, Status>>,
    asked: Arc<Semaphore>,
    /// Has asked for a frame that has not come yet.
    waits: bool,
    complete: bool,
}

impl http_body::Body for Unread {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !std::mem::replace(&mut self.waits, true) {
            self.asked.add_permits(1);
        }
        let next = self.frames.poll_recv(context);
        self.waits = next.is_pending();
        match &next {
            Poll::Ready(None) if !self.complete => {
                self.complete = true;
                return Poll::Ready(Some(Ok(Frame::trailers(refusal(Error::Timeout)))));
            }
            // Each gRPC answer ends with trailers or an error.
            Poll::Ready(Some(frame)) => {
                self.complete = !frame.as_ref().is_ok_and(Frame::is_data);
            }
            _ => {}
        }
        next
    }
}

#[cfg(test)]
mod tests;
