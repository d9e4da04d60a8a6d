//! A stream of Redact, from its second message on.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, stream::unfold};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{documents, handlers::log, limits::explained, proto};
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
    let work = async move {
        let mut pump = Pump { chunks, answers, ending, idle };
        let end = pump.run(&mut redaction).await;
        let input_bytes = redaction.input_bytes();
        let last = match (end, redaction.end().await) {
            (Ok(()), Ok(tally)) => pump.send(Ok(documents::tally(tally, input_bytes))).await,
            (Ok(()), Err(error)) => Err(error.into()),
            (Err(end), _) => Err(end),
        };
        let status = match last {
            Ok(()) | Err(End::Left) => return,
            Err(End::Status(status)) => status,
            Err(End::Refused(error)) => {
                log(Action::Redact, &error);
                error.into()
            }
        };
        // Nobody may be reading, so it is not waited for.
        let _ = pump.answers.try_send(Err(status));
    };
    let next = |mut unread: mpsc::Receiver<_>| async move {
        unread.recv().await.map(|answer| (answer, unread))
    };
    (work, Box::pin(unfold(unread, next)))
}

struct Pump {
    chunks: Streaming<proto::RedactRequest>,
    answers: mpsc::Sender<Result<proto::RedactResponse, Status>>,
    ending: CancellationToken,
    idle: Duration,
}

impl Pump {
    /// Until the client closes its side.
    async fn run(&mut self, redaction: &mut Redaction) -> Result<(), End> {
        while let Some(message) = self.receive().await? {
            let mut answer = proto::RedactResponse::default();
            for slice in documents::chunk(&message)?.chunks(SLICE) {
                redaction.push(slice, &mut answer.chunk);
                answer.input_bytes = redaction.input_bytes();
                if answer.chunk.len() >= ANSWER {
                    self.send(Ok(std::mem::take(&mut answer))).await?;
                }
            }
            if !answer.chunk.is_empty() {
                self.send(Ok(answer)).await?;
            }
        }
        let mut answer = proto::RedactResponse::default();
        redaction.finish(&mut answer.chunk);
        answer.input_bytes = redaction.input_bytes();
        if answer.chunk.is_empty() { Ok(()) } else { self.send(Ok(answer)).await }
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

    async fn send(&mut self, answer: Result<proto::RedactResponse, Status>) -> Result<(), End> {
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
