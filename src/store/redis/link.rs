//! A connection that comes back by itself.
//!
//! `redis::aio::ConnectionManager` would not: it keeps a connection on which
//! answers no longer arrive, and one to a master that has become a replica.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{Pipeline, Value, aio::MultiplexedConnection};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout_at},
};

use super::{
    config::RedisConfig,
    connection::{Opened, StartError, open},
};
use crate::store::StoreError;

/// First and longest pause between two attempts to connect. Half of a pause is
/// random, so that many instances do not come back at one moment.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// One shared connection and the task that replaces it.
pub(super) struct Link {
    live: watch::Receiver<Option<Live>>,
    supervisor: AbortHandle,
    durable: bool,
    response_timeout: Duration,
}

/// The connection now in use.
#[derive(Clone)]
struct Live {
    commands: MultiplexedConnection,
    driver: AbortHandle,
    /// Set before the supervisor can know, so that nobody takes it again.
    given_up: Arc<AtomicBool>,
}

/// Why there are no replies.
pub(super) enum Failure {
    /// The connection broke or its server no longer serves: another may do. The
    /// commands may have been carried out.
    Lost(&'static str),
    /// The script is not known to this Redis and has not run.
    NoScript,
    /// Anything else.
    Store(StoreError),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(why) => Self::Unavailable(why),
            Failure::NoScript => Self::Unavailable("Redis does not keep its scripts"),
            Failure::Store(error) => error,
        }
    }
}

impl Link {
    /// Opens the first connection and keeps one open from then on.
    pub(super) async fn start(config: Arc<RedisConfig>) -> Result<Self, StartError> {
        let opened = open(&config).await?;
        let (response_timeout, durable) = (config.response_timeout, opened.durable);
        let (sender, live) = watch::channel(Some(Live::of(&opened)));
        let supervisor = tokio::spawn(supervise(config, sender, opened)).abort_handle();
        Ok(Self { live, supervisor, durable, response_timeout })
    }

    /// Whether Redis had an append-only file at first.
    pub(super) fn durable(&self) -> bool {
        self.durable
    }

    /// Sends commands in one packet and waits for their replies until the
    /// deadline, waiting for a connection included. Fails if the first reply is
    /// an error.
    pub(super) async fn send(
        &self,
        commands: &Pipeline,
        deadline: Instant,
    ) -> Result<Vec<Value>, Failure> {
        let mut live = self.connection(deadline).await?;
        let start = Instant::now();
        let sent = live.commands.send_packed_commands(commands, 0, commands.len());
        let Ok(replies) = timeout_at(deadline, sent).await else {
            // A call that had to wait for the connection gave it too little
            // time to blame it.
            if start.elapsed() >= self.response_timeout / 2 {
                live.give_up();
            }
            return Err(Failure::Store(StoreError::Unavailable("Redis does not answer")));
        };
        let Ok(replies) = replies else {
            live.give_up();
            return Err(Failure::Lost("connection to Redis lost"));
        };
        match replies.first() {
            Some(Value::ServerError(error)) => {
                let failure = classify(error.code());
                if matches!(failure, Failure::Lost(_)) {
                    live.give_up();
                }
                Err(failure)
            }
            _ => Ok(replies),
        }
    }

    async fn connection(&self, deadline: Instant) -> Result<Live, Failure> {
        let none = Failure::Store(StoreError::Unavailable("no connection to Redis"));
        let mut live = self.live.clone();
        let usable = |live: &Option<Live>| {
            live.as_ref().is_some_and(|live| !live.given_up.load(Ordering::Acquire))
        };
        match timeout_at(deadline, live.wait_for(usable)).await {
            Ok(Ok(live)) => live.clone().ok_or(none),
            _ => Err(none),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Live {
    fn of(opened: &Opened) -> Self {
        Self {
            commands: opened.commands.clone(),
            driver: opened.driver.abort_handle(),
            given_up: Arc::new(AtomicBool::new(false)),
        }
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.driver.abort();
    }
}

/// Replaces the connection whenever its driver ends: the peer closed it, or a
/// call gave it up.
async fn supervise(
    config: Arc<RedisConfig>,
    live: watch::Sender<Option<Live>>,
    mut opened: Opened,
) {
    let (first, longest) = PAUSES;
    let mut pause = first;
    loop {
        let since = Instant::now();
        // Whether it ended or was aborted makes no difference.
        let _ = opened.driver.await;
        live.send_replace(None);
        tracing::warn!("connection to Redis lost");
        if since.elapsed() > longest {
            pause = first;
        } else {
            sleep(jitter(pause)).await;
        }
        let mut told = None;
        opened = loop {
            match open(&config).await {
                Ok(opened) => break opened,
                Err(error) if told == Some(error) => {}
                Err(error) => {
                    tracing::warn!(%error, "no connection to Redis");
                    told = Some(error);
                }
            }
            sleep(jitter(pause)).await;
            pause = longest.min(pause * 2);
        };
        live.send_replace(Some(Live::of(&opened)));
        config.metrics.store_reconnect();
        tracing::info!("connection to Redis is back");
    }
}

fn jitter(pause: Duration) -> Duration {
    // Without randomness all pauses are of full length, which does no harm.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Reads the code of an error reply. The text after it may quote arguments and
/// is never looked at.
fn classify(code: &str) -> Failure {
    let unavailable = |why| Failure::Store(StoreError::Unavailable(why));
    match code {
        "NOSCRIPT" => Failure::NoScript,
        "READONLY" => Failure::Lost("Redis is a replica"),
        "LOADING" => Failure::Lost("Redis is loading its data"),
        "MASTERDOWN" => Failure::Lost("Redis has lost its master"),
        "OOM" => Failure::Store(StoreError::Full),
        "WRONGTYPE" => Failure::Store(StoreError::Malformed("a Redis key has another type")),
        "MISCONF" => unavailable("Redis cannot persist writes"),
        "NOREPLICAS" => unavailable("Redis has too few replicas to write"),
        "NOPERM" | "NOAUTH" => unavailable("Redis denies access"),
        "BUSY" => unavailable("Redis is busy with a script"),
        _ => unavailable("Redis answers with an error"),
    }
}
