//! A connection to one master that comes back by itself.
//!
//! `redis::aio::ConnectionManager` would not: it keeps a connection on which
//! answers no longer arrive, and one to a master that has become a replica.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{Pipeline, ServerError, Value, aio::MultiplexedConnection};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout_at},
};

use super::{
    config::RedisConfig,
    connection::{Opened, open},
    url::Address,
};
use crate::store::StoreError;

/// First and longest pause between two attempts to connect. Half of a pause is
/// random, so that many instances do not come back at one moment.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// What it was told to write, Redis cannot put on its disk. Reads go on.
pub(super) const DISK_FAILS: StoreError = StoreError::Unavailable("Redis cannot persist writes");

/// One shared connection and the task that replaces it.
pub(super) struct Link {
    address: Address,
    state: watch::Receiver<State>,
    supervisor: AbortHandle,
    response_timeout: Duration,
}

enum State {
    Up(Live),
    /// There has been no connection since.
    Down(Instant),
}

/// The connection now in use.
#[derive(Clone)]
struct Live {
    commands: MultiplexedConnection,
    driver: AbortHandle,
    /// Set before the supervisor can know, so that nobody takes it again.
    given_up: Arc<AtomicBool>,
    /// When it was begun to be opened, and when it was open.
    times: (Instant, Instant),
}

/// What a link is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The way to a master.
    Main,
    /// One more, for one runtime: whatever befalls it, befalls the other too, which
    /// tells of it. Counted, one failover would be as many reconnects as there are
    /// cores, and no alert could tell it from connections that do not last.
    Near,
}

/// Why there are no replies.
pub(super) enum Failure {
    /// The connection broke: another may do. The commands may have been carried
    /// out.
    Lost(&'static str),
    /// A proof that nothing has run, and that it may elsewhere or later.
    Refused(Refused),
    /// The script is not known to this Redis and has not run.
    NoScript,
    /// Anything else.
    Store(StoreError),
}

/// Why a master did not run a command.
pub(super) enum Refused {
    /// Another has the slot.
    Moved(Address),
    /// Another has these keys of the slot, which is on its way there.
    Ask(Address),
    /// It cannot now.
    Later(&'static str),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Lost(why) | Failure::Refused(Refused::Later(why)) => Self::Unavailable(why),
            Failure::Refused(_) => Self::Unavailable("the slot is on another node of Redis"),
            Failure::NoScript => Self::Unavailable("Redis does not keep its scripts"),
            Failure::Store(error) => error,
        }
    }
}

impl Link {
    /// Keeps a connection open from now on, on this runtime; the first may be open
    /// already.
    pub(super) fn start(
        config: Arc<RedisConfig>,
        address: Address,
        first: Option<Opened>,
        (runtime, part): (&Handle, Part),
    ) -> Self {
        let response_timeout = config.response_timeout;
        let (sender, state) = watch::channel(State::of(first.as_ref()));
        let supervisor = runtime.spawn(supervise(config, address.clone(), sender, first, part));
        let supervisor = supervisor.abort_handle();
        Self { address, state, supervisor, response_timeout }
    }

    /// When the connection that there is now was begun to be opened, and was open.
    pub(super) fn up(&self) -> Option<(Instant, Instant)> {
        match &*self.state.borrow() {
            state @ State::Up(live) if state.is_usable() => Some(live.times),
            _ => None,
        }
    }

    /// Replaces the connection that there is now.
    pub(super) fn give_up(&self) {
        if let State::Up(live) = &*self.state.borrow() {
            live.give_up();
        }
    }

    /// Opens no more connections. Calls under way go on.
    pub(super) fn retire(&self) {
        self.supervisor.abort();
    }

    /// Sends commands in one packet and waits for their replies until the
    /// deadline, waiting for a connection included. Leaves out the first `skip`
    /// replies; fails if the next is an error.
    pub(super) async fn send(
        &self,
        commands: &Pipeline,
        skip: usize,
        deadline: Instant,
    ) -> Result<Vec<Value>, Failure> {
        let mut live = self.connection(deadline).await?;
        let start = Instant::now();
        let count = commands.len().saturating_sub(skip);
        let replies = {
            let sent = pin!(live.commands.send_packed_commands(commands, skip, count));
            timeout_at(deadline, sent).await
        };
        let Ok(replies) = replies else {
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
                if serves_no_more(error.code()) {
                    live.give_up();
                }
                Err(classify(error, &self.address))
            }
            _ => Ok(replies),
        }
    }

    /// Waits for a connection until the deadline, but not if others have waited
    /// as long in vain: calls to a master that is down must not pile up.
    async fn connection(&self, deadline: Instant) -> Result<Live, Failure> {
        let none = Failure::Store(StoreError::Unavailable("no connection to Redis"));
        let mut state = self.state.clone();
        if let State::Down(since) = &*state.borrow()
            && since.elapsed() >= self.response_timeout
        {
            return Err(none);
        }
        match timeout_at(deadline, state.wait_for(State::is_usable)).await {
            Ok(Ok(state)) => match &*state {
                State::Up(live) => Ok(live.clone()),
                State::Down(_) => Err(none),
            },
            // There will be no other: it was retired.
            Ok(Err(_)) => Err(Failure::Refused(Refused::Later("the master of Redis changes"))),
            Err(_) => Err(none),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl State {
    fn is_usable(&self) -> bool {
        match self {
            Self::Up(live) => !live.given_up.load(Ordering::Acquire),
            Self::Down(_) => false,
        }
    }

    fn of(opened: Option<&Opened>) -> Self {
        let now = Instant::now();
        opened.map_or(Self::Down(now), |opened| Self::Up(Live::of(opened, (now, now))))
    }
}

impl Live {
    fn of(opened: &Opened, times: (Instant, Instant)) -> Self {
        Self {
            times,
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

/// Opens a connection and replaces it whenever its driver ends: the peer closed
/// it, or a call gave it up.
async fn supervise(
    config: Arc<RedisConfig>,
    address: Address,
    state: watch::Sender<State>,
    mut first: Option<Opened>,
    part: Part,
) {
    let (first_pause, longest) = PAUSES;
    let (mut pause, mut replaced) = (first_pause, false);
    loop {
        let (mut told, mut begun) = (None, Instant::now());
        let opened = loop {
            if let Some(opened) = first.take() {
                break opened;
            }
            begun = Instant::now();
            match open(&config, &address).await {
                Ok(opened) => break opened,
                Err(error) if told == Some(error) || part == Part::Near => {}
                Err(error) => {
                    tracing::warn!(%error, node = %address, "no connection to Redis");
                    told = Some(error);
                }
            }
            sleep(jitter(pause)).await;
            pause = longest.min(pause * 2);
        };
        let since = Instant::now();
        state.send_replace(State::Up(Live::of(&opened, (begun, since))));
        if part == Part::Main {
            tracing::info!(node = %address, "connected to Redis");
            if replaced {
                config.metrics.store_reconnect();
            }
        }
        // Whether it ended or was aborted makes no difference.
        let _ = opened.driver.await;
        replaced = true;
        state.send_replace(State::Down(Instant::now()));
        if part == Part::Main {
            tracing::warn!(node = %address, "connection to Redis lost");
        }
        if since.elapsed() > longest {
            pause = first_pause;
        } else {
            sleep(jitter(pause)).await;
        }
    }
}

/// Between half of a pause and all of it.
pub(super) fn jitter(pause: Duration) -> Duration {
    // Without randomness all pauses are of full length, which does no harm.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Whether a connection on which this was answered is of no use.
fn serves_no_more(code: &str) -> bool {
    matches!(code, "READONLY" | "LOADING" | "MASTERDOWN" | "NOAUTH")
}

/// Reads the code of an error reply. The text after it may quote arguments and
/// is looked at only where it is an address.
pub(super) fn classify(error: &ServerError, asked: &Address) -> Failure {
    let unavailable = |why| Failure::Store(StoreError::Unavailable(why));
    let later = |why| Failure::Refused(Refused::Later(why));
    let elsewhere = || redirection(error.details()?, asked);
    match error.code() {
        "NOSCRIPT" => Failure::NoScript,
        "MOVED" => match elsewhere() {
            Some(address) => Failure::Refused(Refused::Moved(address)),
            None => later("the slot is on an unknown node of Redis"),
        },
        "ASK" => match elsewhere() {
            Some(address) => Failure::Refused(Refused::Ask(address)),
            None => later("the slot is on an unknown node of Redis"),
        },
        "TRYAGAIN" => later("the slot moves to another node of Redis"),
        "CLUSTERDOWN" => later("the Redis cluster is down"),
        "READONLY" => later("Redis is a replica"),
        "LOADING" => later("Redis is loading its data"),
        "MASTERDOWN" => later("Redis has lost its master"),
        "OOM" => Failure::Store(StoreError::Full),
        "WRONGTYPE" => Failure::Store(StoreError::Malformed("a Redis key has another type")),
        "MISCONF" => Failure::Store(DISK_FAILS),
        "NOREPLICAS" => unavailable("Redis has too few replicas to write"),
        "NOPERM" => unavailable("Redis denies access"),
        // A new connection shows the password as it is by then.
        "NOAUTH" => later("Redis demands a password"),
        "BUSY" => unavailable("Redis is busy with a script"),
        _ => unavailable("Redis answers with an error"),
    }
}

/// Reads `slot host:port`. Without a host it is that of the node asked.
fn redirection(details: &str, asked: &Address) -> Option<Address> {
    let (host, port) = details.split_once(' ')?.1.rsplit_once(':')?;
    let host = if host.is_empty() { asked.host.as_str() } else { host };
    Some(Address { host: host.to_owned(), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_are_read() {
        let asked = Address { host: "asked".into(), port: 1 };
        let read = |details| redirection(details, &asked).map(|to| (to.host, to.port));
        assert_eq!(read("3999 10.0.0.1:6381"), Some(("10.0.0.1".into(), 6381)));
        assert_eq!(read("3999 ::1:6381"), Some(("::1".into(), 6381)));
        assert_eq!(read("3999 :6381"), Some(("asked".into(), 6381)));
        for bad in ["", "3999", "3999 host", "3999 host:", "3999 host:65536"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
