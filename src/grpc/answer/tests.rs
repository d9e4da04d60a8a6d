//! Answers are let go when nobody reads them, and not before.

use std::sync::Mutex;

use tonic::Code;

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
    (held(Body::new(source), Arc::clone(&alive), patience, &Shelf::default(), |_| Ok(())), alive)
}

/// A stream on which nothing comes.
fn quiet() -> (Body, Arc<()>) {
    let alive = Arc::new(());
    let source = Source { frames: VecDeque::new(), endless: true, _alive: Arc::clone(&alive) };
    let patience = Patience { whole: None, each: Some(WITHIN) };
    (held(Body::new(source), Arc::clone(&alive), patience, &Shelf::default(), |_| Ok(())), alive)
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
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(next(&mut body).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_lasts_while_its_pieces_are_taken_in_time() {
    let alive = Arc::new(());
    let message = || Frame::data(Bytes::from_owner(Message { _alive: Arc::clone(&alive) }));
    let frames = std::iter::repeat_with(message).take(4).collect();
    let source = Source { frames, endless: true, _alive: Arc::clone(&alive) };
    let patience = Patience { whole: None, each: Some(WITHIN) };
    let mut body =
        held(Body::new(source), Arc::clone(&alive), patience, &Shelf::default(), |_| Ok(()));
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
    assert_eq!(error.code(), Code::DeadlineExceeded);
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
        let count = move |bytes| {
            told.lock().unwrap().push(bytes);
            if bytes > most { Err(Error::Overloaded) } else { Ok(()) }
        };
        let (source, place) = (Body::new(source), Arc::clone(&alive));
        let mut body = held(source, place, patience, &Shelf::default(), count);
        match next(&mut body).await.unwrap().unwrap().into_trailers() {
            Ok(trailers) => {
                let error = Status::from_header_map(&trailers).unwrap();
                assert_eq!((error.code(), most), (Code::ResourceExhausted, MESSAGE - 1));
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
    assert!(told.lock().unwrap().starts_with(&[MESSAGE, MESSAGE, MESSAGE - PIECE]));
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

/// A small message, trailers unless `endless`, and what counts who holds any of it.
fn small_answer(shelf: &Shelf, most: usize, endless: bool) -> (Body, Arc<()>) {
    let alive = Arc::new(());
    let trailers = Frame::trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("told"),
        http::HeaderValue::from_static("all"),
    )]));
    let message = Frame::data(Bytes::from(vec![7; 9]));
    let frames = [Some(message), (!endless).then_some(trailers)].into_iter().flatten();
    let source = Source { frames: frames.collect(), endless, _alive: Arc::clone(&alive) };
    let patience = Patience { whole: Some(WITHIN), each: None };
    let count = move |bytes| if bytes > most { Err(Error::Overloaded) } else { Ok(()) };
    (held(Body::new(source), Arc::clone(&alive), patience, shelf, count), alive)
}

#[tokio::test(start_paused = true)]
async fn a_small_answer_holds_its_place_until_it_is_read() {
    let shelf = Shelf::watched();
    let (mut body, alive) = small_answer(&shelf, 9, false);
    assert_eq!(Arc::strong_count(&alive), 2, "the place is held, the source is not");
    let message = next(&mut body).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(message.as_ref(), [7; 9]);
    assert_eq!((Arc::strong_count(&alive), shelf.len()), (2, 1));
    let trailers = next(&mut body).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["told"], "all");
    assert_eq!((Arc::strong_count(&alive), shelf.len()), (1, 0));
    assert!(next(&mut body).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_small_answer_that_is_not_read_goes_with_its_place_in_time() {
    let shelf = Shelf::watched();
    let (mut unread, alive) = small_answer(&shelf, 9, false);
    let (given_up, other) = small_answer(&shelf, 9, false);
    drop(given_up);
    assert_eq!((Arc::strong_count(&other), shelf.len()), (1, 1));
    settle().await;
    tokio::time::advance(WITHIN - Duration::from_millis(1)).await;
    settle().await;
    assert_eq!(Arc::strong_count(&alive), 2);
    tokio::time::advance(Duration::from_secs(1)).await;
    settle().await;
    assert_eq!((Arc::strong_count(&alive), shelf.len()), (1, 0), "though nobody asked");
    assert_eq!(ended(next(&mut unread).await).code(), Code::DeadlineExceeded);
    assert!(next(&mut unread).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_small_answer_that_is_too_much_ends_with_the_error() {
    let (mut body, alive) = small_answer(&Shelf::default(), 8, false);
    assert_eq!(ended(next(&mut body).await).code(), Code::ResourceExhausted);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_ready_is_waited_for() {
    let shelf = Shelf::default();
    let (mut body, _alive) = small_answer(&shelf, 9, true);
    assert_eq!(shelf.len(), 0);
    assert!(next(&mut body).await.unwrap().unwrap().is_data());
    settle().await;
    tokio::time::advance(WITHIN).await;
    settle().await;
    assert_eq!(ended(next(&mut body).await).code(), Code::DeadlineExceeded);
}
