//! What goes wrong: one fault every few seconds, now and then two at once, in
//! an order that the seed makes again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

use crate::{
    probe::Availability,
    proxy::Wire,
    rig::{Rig, policy},
    rng::Rng,
    site::{Caller, REPLICAS, Site, answered, timed},
    support::{
        kms_endpoint::{Fault as KmsFault, KeyState},
        platform::resolve,
    },
};

/// All of them come before any comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    ReplicaKilled,
    ReplicaTerminated,
    ReplicaStopped,
    RedisKilled,
    RedisStopped,
    WireCut,
    WireSilent,
    WireSlow,
    KmsThrottles,
    KmsFails,
    KmsHangs,
    KmsResets,
    KmsKeyDisabled,
    Certificates,
    Policy,
    Flood,
    Hostile,
}

const KINDS: [Kind; 17] = [
    Kind::ReplicaKilled,
    Kind::ReplicaTerminated,
    Kind::ReplicaStopped,
    Kind::RedisKilled,
    Kind::RedisStopped,
    Kind::WireCut,
    Kind::WireSilent,
    Kind::WireSlow,
    Kind::KmsThrottles,
    Kind::KmsFails,
    Kind::KmsHangs,
    Kind::KmsResets,
    Kind::KmsKeyDisabled,
    Kind::Certificates,
    Kind::Policy,
    Kind::Flood,
    Kind::Hostile,
];

impl Kind {
    /// With it, no replica has a store to ask: nothing can be promised while it
    /// lasts. With any other, at least one replica has all it needs for a warm
    /// workspace.
    fn takes_the_store(self) -> bool {
        matches!(self, Self::RedisKilled | Self::RedisStopped | Self::WireSilent)
    }

    /// What it breaks; of two at once, each breaks something else.
    fn part(self) -> &'static str {
        match self {
            Self::ReplicaKilled | Self::ReplicaTerminated | Self::ReplicaStopped => "replica",
            Self::RedisKilled | Self::RedisStopped => "redis",
            Self::WireCut | Self::WireSilent | Self::WireSlow => "wire",
            Self::KmsThrottles
            | Self::KmsFails
            | Self::KmsHangs
            | Self::KmsResets
            | Self::KmsKeyDisabled => "kms",
            Self::Certificates | Self::Policy => "files",
            Self::Flood | Self::Hostile => "clients",
        }
    }
}

/// One or two faults, and what came of them.
#[derive(Debug)]
pub(crate) struct Happened {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// From its end until every replica answered reads and writes. `None`: not
    /// within [`RECOVERY`].
    pub(crate) recovery: Option<Duration>,
}

impl Happened {
    pub(crate) fn took_the_store(&self) -> bool {
        self.kinds.iter().any(|kind| kind.takes_the_store())
    }
}

/// Far longer than any recovery.
const RECOVERY: Duration = Duration::from_secs(60);

/// Shortest and longest time between faults, and of a fault.
const CALM: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));
const HOLD: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Breaks things until `deadline`; all is whole at the end, or never gets so.
pub(crate) async fn run(
    rig: &mut Rig,
    availability: &Availability,
    seed: u64,
    deadline: Instant,
) -> Vec<Happened> {
    let mut rng = Rng::of(seed, "faults", 0);
    let half = Instant::now() + (deadline - Instant::now()) / 2;
    let (mut happened, mut deck) = (Vec::new(), Vec::new());
    loop {
        tokio::time::sleep(rng.between(CALM.0, CALM.1)).await;
        if Instant::now() >= deadline {
            return happened;
        }
        if deck.is_empty() {
            deck = KINDS.to_vec();
            rng.shuffle(&mut deck);
        }
        let first = deck.pop().unwrap();
        let second = deck.last().copied().filter(|second| second.part() != first.part());
        let second = if rng.percent(20) { second } else { None };
        if second.is_some() {
            deck.pop();
        }
        // The store comes back first, as a replica that starts needs it.
        let mut kinds: Vec<_> = [Some(first), second].into_iter().flatten().collect();
        kinds.sort_by_key(|kind| kind.part() == "replica");
        // One process lives through the second half: it must not grow.
        let replica = rng.below(REPLICAS);
        let victim = if Instant::now() < half { replica } else { 0 };
        let hold = rng.between(HOLD.0, HOLD.1);

        let began = Instant::now();
        let mut faults = Vec::new();
        for kind in &kinds {
            faults.push(begin(rig, *kind, victim, &mut rng).await);
        }
        tokio::time::sleep(hold).await;
        for fault in faults {
            end(rig, fault).await;
        }
        let ended = Instant::now();
        let recovery = recovered(rig, availability, ended).await;
        happened.push(Happened { kinds, began, ended, recovery });
    }
}

async fn recovered(rig: &mut Rig, availability: &Availability, since: Instant) -> Option<Duration> {
    while since.elapsed() < RECOVERY {
        if availability.is_whole_since(since) {
            return Some(since.elapsed());
        }
        rig.tend();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

/// One that lasts.
enum Standing {
    Launch(usize),
    Continue(usize),
    RestartRedis,
    ContinueRedis,
    /// Its connections end, as such do in the end.
    CutWire,
    MendWire,
    HealKms,
    EnableKey,
    GoodPolicy,
    Clients(JoinSet<()>),
    Nothing,
}

async fn begin(rig: &mut Rig, kind: Kind, victim: usize, rng: &mut Rng) -> Standing {
    let kms = |fault| {
        rig.platform.kms.fault(fault);
        Standing::HealKms
    };
    match kind {
        Kind::ReplicaKilled => {
            rig.kill9(victim);
            Standing::Launch(victim)
        }
        Kind::ReplicaTerminated => {
            rig.terminate(victim).await;
            Standing::Launch(victim)
        }
        Kind::ReplicaStopped => {
            let victim = rng.below(REPLICAS);
            rig.replica(victim).stop_signal();
            Standing::Continue(victim)
        }
        Kind::RedisKilled => {
            rig.platform.redis.kill9();
            Standing::RestartRedis
        }
        Kind::RedisStopped => {
            rig.platform.redis.stop_signal();
            Standing::ContinueRedis
        }
        Kind::WireCut => {
            rig.wire.cut();
            Standing::CutWire
        }
        Kind::WireSilent => {
            rig.wire.set(Wire::Silent);
            Standing::MendWire
        }
        Kind::WireSlow => {
            let delay = rng.between(Duration::from_millis(5), Duration::from_millis(150));
            rig.wire.set(Wire::Slow(delay));
            Standing::MendWire
        }
        Kind::KmsThrottles => kms(KmsFault::Throttle),
        Kind::KmsFails => kms(KmsFault::Error(500, "KMSInternalException")),
        Kind::KmsHangs => kms(KmsFault::Hang),
        Kind::KmsResets => kms(KmsFault::Drop),
        Kind::KmsKeyDisabled => {
            rig.platform.kms.set_state(&rig.platform.kms_key, KeyState::Disabled);
            Standing::EnableKey
        }
        Kind::Certificates => {
            rig.new_certificates();
            Standing::Nothing
        }
        Kind::Policy => {
            // Refused whole: the one before stays in force.
            rig.write_policy("[[grant]]\ncaller = \"spiffe://test/executor\"\nrole = \"king\"\n");
            Standing::GoodPolicy
        }
        Kind::Flood => Standing::Clients(flood(&rig.site)),
        Kind::Hostile => Standing::Clients(hostile(&rig.site)),
    }
}

async fn end(rig: &mut Rig, standing: Standing) {
    match standing {
        Standing::Launch(replica) => rig.launch(replica),
        Standing::Continue(replica) => rig.replica(replica).cont_signal(),
        Standing::RestartRedis => rig.platform.redis.restart().await,
        Standing::ContinueRedis => rig.platform.redis.cont_signal(),
        Standing::CutWire => rig.wire.cut(),
        Standing::MendWire => rig.wire.set(Wire::Good),
        Standing::HealKms => rig.platform.kms.heal(),
        Standing::EnableKey => {
            rig.platform.kms.set_state(&rig.platform.kms_key, KeyState::Enabled);
        }
        Standing::GoodPolicy => rig.write_policy(&policy()),
        Standing::Clients(mut clients) => clients.shutdown().await,
        Standing::Nothing => {}
    }
}

/// One caller asks for one workspace without pause.
fn flood(site: &Arc<Site>) -> JoinSet<()> {
    let mut all = JoinSet::new();
    for number in 0..64 {
        let site = Arc::clone(site);
        all.spawn(async move {
            let mut caller = Caller::new(&site, "flooder", Rng::of(0, "flood", number));
            loop {
                let request = timed(resolve("flood", &["NOBODY"]));
                answered(caller.any().resolve_secrets(request)).await;
                tokio::task::yield_now().await;
            }
        });
    }
    all
}

/// Connections that say nothing, half of something, or nonsense.
fn hostile(site: &Arc<Site>) -> JoinSet<()> {
    let mut all = JoinSet::new();
    for number in 0..60 {
        let address = site.addresses[number % REPLICAS];
        all.spawn(async move {
            let words: &[u8] = match number % 4 {
                0 => b"",
                1 => b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
                // The beginning of a ClientHello that never goes on.
                2 => &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
                _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            };
            loop {
                if let Ok(mut stream) = TcpStream::connect(address).await {
                    let _ = stream.write_all(words).await;
                    let mut nothing = [0; 64];
                    while let Ok(1..) =
                        tokio::io::AsyncReadExt::read(&mut stream, &mut nothing).await
                    {
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    all
}
