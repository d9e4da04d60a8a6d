//! What callers know of the service: where its replicas are, and how to speak
//! to them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustls::ClientConfig;
use tokio::time::timeout;
use tonic::{
    Code, Request, Response, Status,
    transport::{Channel, Endpoint, Uri},
};
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::proto::{
    key_service_client::KeyServiceClient, secrets_service_client::SecretsServiceClient,
};

use crate::{
    rng::Rng,
    support::{
        pki::{self, Ca},
        platform::{Client, KeyClient, spiffe_id},
    },
};

/// How many replicas there are.
pub(crate) const REPLICAS: usize = 2;

/// Callers, by the last part of their SPIFFE ids.
pub(crate) const CALLERS: [&str; 5] = ["executor", "platform", "sheets", "operator", "flooder"];

/// How long a call may take before its caller gives it up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Calls after which a caller connects anew.
const CALLS_PER_CONNECTION: usize = 400;

pub(crate) struct Site {
    pub(crate) addresses: [SocketAddr; REPLICAS],
    configs: RwLock<HashMap<&'static str, Arc<ClientConfig>>>,
    over: AtomicBool,
}

impl Site {
    pub(crate) fn new(addresses: [SocketAddr; REPLICAS], ca: &Ca) -> Self {
        let site = Self { addresses, configs: RwLock::default(), over: AtomicBool::new(false) };
        site.new_certificates(ca);
        site
    }

    /// Every caller gets a new certificate, for its next connections.
    pub(crate) fn new_certificates(&self, ca: &Ca) {
        let new = CALLERS.map(|caller| {
            let identity = ca.client(&[&spiffe_id(caller)]);
            (caller, pki::client_config(ca, Some(&identity)))
        });
        self.configs.write().unwrap().extend(new);
    }

    /// Ends the load: every caller finishes what it has in hand.
    pub(crate) fn stop(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Connects when first used, and again whenever the connection has ended.
    pub(crate) fn channel(&self, replica: usize, caller: &str) -> Channel {
        let config = Arc::clone(&self.configs.read().unwrap()[caller]);
        let address = self.addresses[replica];
        let connector = tower::service_fn(move |_: Uri| {
            let config = Arc::clone(&config);
            async move {
                let connected = timeout(PATIENCE, pki::connect(address, config)).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(connected?))
            }
        });
        Endpoint::from_static("http://localhost")
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(3))
            .connect_with_connector_lazy(connector)
    }

    pub(crate) fn client(&self, replica: usize, caller: &str) -> Client {
        SecretsServiceClient::new(self.channel(replica, caller))
            .max_decoding_message_size(16 * 1024 * 1024)
    }

    fn key_client(&self, replica: usize, caller: &str) -> KeyClient {
        KeyServiceClient::new(self.channel(replica, caller))
    }
}

/// One caller, with a connection to each replica.
pub(crate) struct Caller {
    site: Arc<Site>,
    name: &'static str,
    rng: Rng,
    left: usize,
    clients: Vec<(Client, KeyClient)>,
}

impl Caller {
    pub(crate) fn new(site: &Arc<Site>, name: &'static str, rng: Rng) -> Self {
        Self { site: Arc::clone(site), name, rng, left: 0, clients: Vec::new() }
    }

    /// A client of any replica.
    pub(crate) fn any(&mut self) -> Client {
        let replica = self.rng.below(REPLICAS);
        self.of(replica)
    }

    /// A client of this replica.
    pub(crate) fn of(&mut self, replica: usize) -> Client {
        self.refresh();
        self.clients[replica].0.clone()
    }

    /// The same for the administration of keys.
    pub(crate) fn any_keys(&mut self) -> KeyClient {
        self.refresh();
        let replica = self.rng.below(REPLICAS);
        self.clients[replica].1.clone()
    }

    fn refresh(&mut self) {
        if self.left == 0 {
            self.left = CALLS_PER_CONNECTION / 2 + self.rng.below(CALLS_PER_CONNECTION);
            let clients = |replica| {
                (self.site.client(replica, self.name), self.site.key_client(replica, self.name))
            };
            self.clients = (0..REPLICAS).map(clients).collect();
        }
        self.left -= 1;
    }
}

/// How a call ended.
pub(crate) enum Outcome<T> {
    Answer(T),
    /// Come again: why. Whether it was carried out is not known.
    Away(String),
    /// No: reason and text.
    No(String, String),
}

/// A request with the deadline that [`answered`] waits for.
pub(crate) fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

/// What became of a call.
pub(crate) async fn answered<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Outcome<T> {
    // Later than its deadline, so that the service may tell of it itself.
    match timeout(PATIENCE + Duration::from_secs(1), call).await {
        Err(_) => Outcome::Away("given up".to_owned()),
        Ok(Ok(answer)) => Outcome::Answer(answer.into_inner()),
        Ok(Err(status)) => refusal(&status),
    }
}

/// Errors after which a call may be made again.
const AWAY: [&str; 9] = [
    "STORE_UNAVAILABLE",
    "KMS_UNAVAILABLE",
    "AUDIT_UNAVAILABLE",
    "OVERLOADED",
    "SHUTTING_DOWN",
    "TIMEOUT",
    "RATE_LIMITED",
    "CONCURRENT_UPDATE",
    // One of the faults disables the key.
    "KMS_KEY_UNUSABLE",
];

pub(crate) fn refusal<T>(status: &Status) -> Outcome<T> {
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone());
    match reason {
        Some(reason) if AWAY.contains(&reason.as_str()) => Outcome::Away(reason),
        Some(reason) => Outcome::No(reason, status.message().to_owned()),
        // Not the service's: the connection has ended, or could not be made.
        None => match status.code() {
            Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal => Outcome::Away("no answer".to_owned()),
            code => Outcome::No(format!("{code:?}"), status.message().to_owned()),
        },
    }
}
