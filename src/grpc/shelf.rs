//! Small answers that wait to be read.
//!
//! Most answers are one frame and trailers, ready when their call is, and are
//! read at once. A task and a timer for each would cost more than to make it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::time::{Instant, sleep};
use tonic::{Status, body::Body};

use super::answer::refusal;
use crate::service::Error;

/// How often answers are looked through for those whose time is over.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// All small answers that are not read yet.
#[derive(Clone, Default)]
pub(super) struct Shelf(Arc<Mutex<Unread>>);

#[derive(Default)]
struct Unread {
    answers: HashMap<u64, Arc<dyn Perishable>>,
    next: u64,
}

impl Shelf {
    /// One that lets answers go whose time is over. Must be called within a Tokio
    /// runtime, on which this goes on until the shelf is dropped.
    pub(super) fn watched() -> Self {
        let shelf = Self::default();
        tokio::spawn(look_through(Arc::downgrade(&shelf.0)));
        shelf
    }

    /// A body of this message, if any, and these trailers, kept together with `held` until
    /// it is read, or `within` is over and [`LOOK_EVERY`] at most. Then both go, and
    /// the answer ends with an error, for a peer that still reads it.
    pub(super) fn keep(
        &self,
        (data, trailers): (Option<Bytes>, HeaderMap),
        held: impl Send + 'static,
        within: Duration,
    ) -> Body {
        let contents = Mutex::new(Some(Contents { data, trailers, _held: held }));
        let answer = Arc::new(Answer { contents, until: Instant::now() + within });
        let mut unread = lock(&self.0);
        let number = unread.next;
        unread.next += 1;
        unread.answers.insert(number, Arc::clone(&answer) as Arc<dyn Perishable>);
        drop(unread);
        Body::new(Kept { answer, number: Some(number), shelf: self.clone() })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.0).answers.len()
    }

    fn let_go(&self, number: u64) {
        let answer = lock(&self.0).answers.remove(&number);
        // Not under the lock: what is held may be much, or have a drop of its own.
        drop(answer);
    }
}

/// No step under these locks leaves anything half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn look_through(unread: Weak<Mutex<Unread>>) {
    loop {
        sleep(LOOK_EVERY).await;
        let Some(unread) = unread.upgrade() else { return };
        let now = Instant::now();
        let over = lock(&unread).answers.extract_if(|_, answer| answer.is_over(now)).collect();
        let over: Vec<(u64, Arc<dyn Perishable>)> = over;
        over.iter().for_each(|(_, answer)| answer.perish());
    }
}

/// Something with an end.
trait Perishable: Send + Sync {
    fn is_over(&self, now: Instant) -> bool;
    fn perish(&self);
}

struct Answer<H> {
    contents: Mutex<Option<Contents<H>>>,
    until: Instant,
}

struct Contents<H> {
    data: Option<Bytes>,
    trailers: HeaderMap,
    _held: H,
}

impl<H: Send> Perishable for Answer<H> {
    fn is_over(&self, now: Instant) -> bool {
        self.until <= now
    }

    fn perish(&self) {
        let contents = lock(&self.contents).take();
        drop(contents);
    }
}

/// An answer as HTTP/2 reads it.
struct Kept<H> {
    answer: Arc<Answer<H>>,
    /// On the shelf, until it is read.
    number: Option<u64>,
    shelf: Shelf,
}

impl<H: Send + 'static> http_body::Body for Kept<H> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(number) = self.number else { return Poll::Ready(None) };
        let mut contents = lock(&self.answer.contents);
        if let Some(data) = contents.as_mut().and_then(|contents| contents.data.take()) {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let last = contents.take();
        drop(contents);
        self.number = None;
        self.shelf.let_go(number);
        let last = match last {
            Some(Contents { trailers, .. }) => trailers,
            None => refusal(Error::Timeout),
        };
        Poll::Ready(Some(Ok(Frame::trailers(last))))
    }
}

impl<H> Drop for Kept<H> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.shelf.let_go(number);
        }
    }
}
