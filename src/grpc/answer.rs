//! Answers that nobody reads.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use tokio::sync::{Semaphore, mpsc};
use tonic::{Status, body::Body};

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
/// even the time, while the peer takes no more.
///
/// `count` is told how many bytes of a message wait to be read, and refuses
/// those that are too many: the answer ends with its error.
pub(super) fn held(
    body: Body,
    place: impl Send + 'static,
    patience: Patience,
    count: impl FnMut(usize) -> Result<(), Error> + Send + 'static,
) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let (frames, unread) = mpsc::channel(1);
    let asked = Arc::new(Semaphore::new(0));
    let peer = Peer { frames, asked: Arc::clone(&asked) };
    tokio::spawn(async move {
        let _place = place;
        tokio::select! {
            () = hand_over(body, &peer, patience.each, count) => {}
            () = peer.frames.closed() => {}
            () = over(patience.whole) => {}
        }
    });
    Body::new(Unread { frames: unread, asked, waits: false, complete: false })
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
    mut body: Body,
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
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let sent = match frame.map(Frame::into_data) {
            Ok(Ok(mut data)) => loop {
                if let Err(error) = count(data.len()) {
                    drop((data, body));
                    let _ = send(Ok(refusal(error))).await;
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

/// The end of an answer that was begun. A reset would not tell why.
fn refusal(error: Error) -> Frame<Bytes> {
    let mut trailers = Status::from(error).into_http::<()>().into_parts().0.headers;
    trailers.remove(http::header::CONTENT_TYPE);
    Frame::trailers(trailers)
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
                return Poll::Ready(Some(Ok(refusal(Error::Timeout))));
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
mod tests {
    use std::{collections::VecDeque, sync::Mutex};

    use http::HeaderMap;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(10);
    const MESSAGE: usize = 3 * PIECE + 1;

    /// The bytes of a message, which hold what counts their holders.
    struct Message {
        _alive: Arc<()>,
    }

    impl AsRef<[u8]> for Message {
        fn as_ref(&self) -> &[u8] {
            &[7; MESSAGE]
        }
    }

    /// Hands out frames; then ends, or never does.
    struct Source {
        frames: VecDeque<Frame<Bytes>>,
        endless: bool,
        _alive: Arc<()>,
    }

    impl http_body::Body for Source {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match self.frames.pop_front() {
                None if self.endless => Poll::Pending,
                next => Poll::Ready(next.map(Ok)),
            }
        }
    }

    /// Two messages and trailers, and what counts who holds any of it.
    fn answer() -> (Body, Arc<()>) {
        let alive = Arc::new(());
        let message = || Frame::data(Bytes::from_owner(Message { _alive: Arc::clone(&alive) }));
        let frames = [message(), message(), Frame::trailers(HeaderMap::new())].into();
        let source = Source { frames, endless: false, _alive: Arc::clone(&alive) };
        let patience = Patience { whole: Some(WITHIN), each: None };
        (held(Body::new(source), Arc::clone(&alive), patience, |_| Ok(())), alive)
    }

    /// A stream on which nothing comes.
    fn quiet() -> (Body, Arc<()>) {
        let alive = Arc::new(());
        let source = Source { frames: VecDeque::new(), endless: true, _alive: Arc::clone(&alive) };
        let patience = Patience { whole: None, each: Some(WITHIN) };
        (held(Body::new(source), Arc::clone(&alive), patience, |_| Ok(())), alive)
    }

    async fn next(body: &mut Body) -> Option<Result<Frame<Bytes>, Status>> {
        poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await
    }

    fn ended(frame: Option<Result<Frame<Bytes>, Status>>) -> Status {
        let trailers = frame.unwrap().unwrap().into_trailers().ok().unwrap();
        Status::from_header_map(&trailers).unwrap()
    }

    /// Lets the task do all that it can.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_arrives_whole_and_in_pieces() {
        let (mut body, _alive) = answer();
        let mut read = 0;
        let trailers = loop {
            let frame = next(&mut body).await.unwrap().unwrap();
            match frame.into_data() {
                Ok(data) => {
                    assert!(data.len() <= PIECE && data.iter().all(|byte| *byte == 7));
                    read += data.len();
                }
                Err(frame) => break frame,
            }
        };
        assert!(trailers.is_trailers());
        assert_eq!(read, 2 * MESSAGE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_read_goes_with_its_place_when_its_time_is_over() {
        let (mut body, alive) = answer();
        settle().await;
        tokio::time::advance(WITHIN - Duration::from_millis(1)).await;
        settle().await;
        assert!(Arc::strong_count(&alive) > 3, "body, place and messages are held");
        tokio::time::advance(Duration::from_millis(1)).await;
        settle().await;
        assert_eq!(Arc::strong_count(&alive), 1, "all are gone, though nobody asked");
        let error = ended(next(&mut body).await);
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_lasts_while_its_pieces_are_taken_in_time() {
        let alive = Arc::new(());
        let message = || Frame::data(Bytes::from_owner(Message { _alive: Arc::clone(&alive) }));
        let frames = std::iter::repeat_with(message).take(4).collect();
        let source = Source { frames, endless: true, _alive: Arc::clone(&alive) };
        let patience = Patience { whole: None, each: Some(WITHIN) };
        let mut body = held(Body::new(source), Arc::clone(&alive), patience, |_| Ok(()));
        for _ in 0..6 {
            settle().await;
            tokio::time::advance(WITHIN - Duration::from_millis(1)).await;
            assert!(next(&mut body).await.unwrap().unwrap().is_data());
        }
        settle().await;
        tokio::time::advance(WITHIN).await;
        settle().await;
        assert_eq!(Arc::strong_count(&alive), 1, "place, messages and source are gone");
        let error = ended(next(&mut body).await);
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_too_much_ends_with_the_error_and_is_let_go() {
        let (most, told) = (MESSAGE, Arc::new(Mutex::new(vec![])));
        for most in [most, most - 1] {
            let alive = Arc::new(());
            let message = Message { _alive: Arc::clone(&alive) };
            let frames = [Frame::data(Bytes::from_owner(message))].into();
            let source = Source { frames, endless: true, _alive: Arc::clone(&alive) };
            let told = Arc::clone(&told);
            let patience = Patience { whole: Some(WITHIN), each: None };
            let mut body = held(Body::new(source), Arc::clone(&alive), patience, move |bytes| {
                told.lock().unwrap().push(bytes);
                if bytes > most { Err(Error::Overloaded) } else { Ok(()) }
            });
            match next(&mut body).await.unwrap().unwrap().into_trailers() {
                Ok(trailers) => {
                    let error = Status::from_header_map(&trailers).unwrap();
                    assert_eq!((error.code(), most), (tonic::Code::ResourceExhausted, MESSAGE - 1));
                    settle().await;
                    assert_eq!(Arc::strong_count(&alive), 1);
                }
                Err(frame) => {
                    assert!(frame.is_data() && most == MESSAGE);
                    settle().await;
                }
            }
        }
        // Less and less is unread.
        assert!(told.lock().unwrap().starts_with(&[MESSAGE, MESSAGE - PIECE]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_bound_lasts_until_its_reader_leaves() {
        let (body, alive) = quiet();
        settle().await;
        tokio::time::advance(100 * WITHIN).await;
        settle().await;
        assert_eq!(Arc::strong_count(&alive), 3);
        drop(body);
        settle().await;
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
