//! A stream of Redact, from its second message on.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, stream::unfold};
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{documents, handlers::log, proto, refusals::explained};
use crate::service::{Error, Redaction, audit::Action};

/// What the client reads.
pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<proto::RedactResponse, Status>> + Send>>;

/// Bytes looked through at once.
const SLICE: usize = 16 * 1024;

/// Bytes from which an answer is sent before its chunk is through.
const ANSWER: usize = 64 * 1024;

/// Why a stream ended before the client closed its side.
enum End {
    /// The client has left: there is nobody to tell.
    Left,
    Refused(Error),
    /// Refused by tonic.
    Status(Status),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// The work of a stream, for a task of its own, and its answers. However the
/// stream ends, what it found gets its audit lines.
pub(super) fn stream(
    mut redaction: Redaction,
    chunks: Streaming<proto::RedactRequest>,
    ending: CancellationToken,
    idle: Duration,
) -> (impl Future<Output = ()> + Send, Answers) {
    let (answers, unread) = mpsc::channel(2);
    // Apart from the answers, which may be full: a stream that was cut must
    // not look like one that is complete.
    let (ended, end) = oneshot::channel();
    let work = async move {
        let mut pump = Pump { chunks, answers, ending, idle };
        let end = pump.run(&mut redaction).await;
        let input_bytes = redaction.input_bytes();
        let last = match (end, redaction.end().await) {
            (Ok(()), Ok(tally)) => pump.send(documents::tally(tally, input_bytes)).await,
            (Ok(()), Err(error)) => Err(error.into()),
            (Err(end), Ok(_)) => Err(end),
            // Lines are missing, and nobody else may be told.
            (Err(end), Err(error)) => {
                log(Action::Redact, &error);
                Err(end)
            }
        };
        let end = match last {
            Ok(()) | Err(End::Left) => Ok(()),
            Err(End::Status(status)) => Err(status),
            Err(End::Refused(error)) => {
                log(Action::Redact, &error);
                Err(error.into())
            }
        };
        // The client may have left.
        let _ = ended.send(end);
    };
    let next = |(mut unread, end): Unread| async move {
        if let Some(answer) = unread.recv().await {
            return Some((Ok(answer), (unread, end)));
        }
        let end = end?.await.unwrap_or_else(|_| Err(Error::Internal("a stream broke off").into()));
        end.err().map(|status| (Err(status), (unread, None)))
    };
    (work, Box::pin(unfold((unread, Some(end)), next)))
}

/// What the client has not read yet: answers, and how the stream ended.
type Unread =
    (mpsc::Receiver<proto::RedactResponse>, Option<oneshot::Receiver<Result<(), Status>>>);

struct Pump {
    chunks: Streaming<proto::RedactRequest>,
    answers: mpsc::Sender<proto::RedactResponse>,
    ending: CancellationToken,
    idle: Duration,
}

impl Pump {
    /// Until the client closes its side.
    async fn run(&mut self, redaction: &mut Redaction) -> Result<(), End> {
        while let Some(message) = self.receive().await? {
            let mut answer = proto::RedactResponse::default();
            for slice in documents::chunk(&message)?.chunks(SLICE) {
                redaction.push(slice, &mut answer.chunk).await?;
                answer.input_bytes = redaction.input_bytes();
                if answer.chunk.len() >= ANSWER {
                    self.send(std::mem::take(&mut answer)).await?;
                }
                // Some values and texts take long: other calls have their turn.
                yield_now().await;
            }
            if !answer.chunk.is_empty() {
                self.send(answer).await?;
            }
        }
        let mut answer = proto::RedactResponse::default();
        redaction.finish(&mut answer.chunk).await?;
        answer.input_bytes = redaction.input_bytes();
        if answer.chunk.is_empty() { Ok(()) } else { self.send(answer).await }
    }

    async fn receive(&mut self) -> Result<Option<proto::RedactRequest>, End> {
        tokio::select! {
            biased;
            () = self.ending.cancelled() => Err(Error::ShuttingDown.into()),
            () = self.answers.closed() => Err(End::Left),
            next = tokio::time::timeout(self.idle, self.chunks.message()) => match next {
                Err(_) => Err(Error::Timeout.into()),
                Ok(next) => next.map_err(|status| End::Status(explained(status))),
            },
        }
    }

    async fn send(&mut self, answer: proto::RedactResponse) -> Result<(), End> {
        tokio::select! {
            biased;
            sent = tokio::time::timeout(self.idle, self.answers.send(answer)) => match sent {
                Err(_) => Err(Error::Timeout.into()),
                Ok(sent) => sent.map_err(|_| End::Left),
            },
            () = self.ending.cancelled() => Err(Error::ShuttingDown.into()),
        }
    }
}
