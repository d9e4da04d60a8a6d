//! A hot Resolve, and a Render, beside a bare tonic echo: same build, same messages, same
//! mutual TLS, same runtime. What counts is the ratio.
//!
//! `cargo bench` starts a redis-server of its own and a KMS endpoint.
#![allow(clippy::unwrap_used, reason = "a bench fails loudly")]

#[allow(dead_code, unreachable_pub, clippy::panic, clippy::indexing_slicing, reason = "shared")]
#[allow(clippy::expect_used, clippy::unwrap_used, reason = "shared")]
#[path = "../tests/integration/support/mod.rs"]
mod support;

#[path = "shared/echo.rs"]
mod echo;

use std::{alloc::System, net::Ipv4Addr, sync::Arc};

use arc_swap::ArcSwap;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use workflow_secrets::{
    domain::{Clock, Environment, SystemClock},
    envelope::KeyringConfig,
    grpc::{
        self, Health, ServerConfig,
        accept::{self, AcceptLimits},
        proto::{
            RenderTemplateRequest, render_template_request::Template::Json,
            secrets_service_client::SecretsServiceClient,
            secrets_service_server::SecretsServiceServer,
        },
        tls,
    },
    service::{
        Limits, Parts, Secrets,
        access::Policy,
        audit::{AuditConfig, AuditLog, AuditSink},
    },
    store::{
        Store,
        redis::{RedisConfig, RedisStore, RedisUrl},
    },
};

use zeroizing_alloc::ZeroAlloc;

use self::{
    echo::{Echo, VALUE},
    support::{
        kms_endpoint::KmsEndpoint,
        pki::{self, Ca},
        platform,
        redis_server::{Options, RedisServer},
    },
};

/// As in the program; the echo pays for it too.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// Both servers, and a client of each.
struct Bench {
    echo: SecretsServiceClient<Channel>,
    service: SecretsServiceClient<Channel>,
    /// The same without a record of who uses what.
    unrecorded: SecretsServiceClient<Channel>,
    _redis: RedisServer,
    _kms: KmsEndpoint,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let redis = RedisServer::start(Options::default()).await;
        let kms = KmsEndpoint::start().await;
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::new();
        let files = pki::write_server_files(dir.path(), &ca.server(), &ca);
        let caller = platform::spiffe_id("developer");
        let client = pki::client_config(&ca, Some(&ca.client(&[&caller])));

        let listen = async || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let tls = Arc::new(ArcSwap::new(tls::load(&files).unwrap()));
            let limits = AcceptLimits::default();
            (address, accept::incoming(listener, tls, limits, CancellationToken::new()))
        };

        let (echo, incoming) = listen().await;
        let server = tonic::transport::Server::builder()
            .add_service(SecretsServiceServer::new(Echo::default()))
            .serve_with_incoming(incoming);
        tokio::spawn(server);

        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let config = RedisConfig::new(RedisUrl::parse(&redis.url()).unwrap());
        let store: Arc<dyn Store> = Arc::new(RedisStore::connect(config).await.unwrap());
        let environment = Environment::parse("bench").unwrap();
        let key = kms.create_key();
        let caller = workflow_secrets::domain::CallerId::parse(&caller).unwrap();
        let secrets = |audit: &str| {
            Secrets::new(Parts {
                store: Arc::clone(&store),
                kms: Arc::new(kms.kms(&key)),
                keyring: KeyringConfig::default(),
                clock: Arc::clone(&clock),
                audit: AuditLog::start(
                    AuditSink::File(dir.path().join(audit)),
                    AuditConfig::default(),
                )
                .unwrap(),
                policy: Arc::new(ArcSwap::from_pointee(Policy::everything(caller.clone()))),
                environment: environment.clone(),
                limits: Limits { max_secrets_per_workspace: 1_000, ..Limits::default() },
                shredded: Arc::default(),
            })
        };
        let serve = async |secrets| {
            let (address, incoming) = listen().await;
            let secrets = Arc::new(secrets);
            tokio::spawn(write_usage(Arc::clone(&secrets)));
            tokio::spawn(async move {
                let health = Health::default();
                let never = std::future::pending();
                let config = ServerConfig::default();
                let span = |_: &str, _: &http::HeaderMap| tracing::Span::none();
                grpc::serve(secrets, &health, config, incoming, never, span).await.unwrap();
            });
            address
        };
        let service = serve(secrets("audit.jsonl")).await;
        let unrecorded = serve(secrets("unrecorded.jsonl").without_usage()).await;

        let connect = async |address| {
            SecretsServiceClient::new(pki::channel(address, client.clone()).await.unwrap())
        };
        let mut bench = Self {
            echo: connect(echo).await,
            service: connect(service).await,
            unrecorded: connect(unrecorded).await,
            _redis: redis,
            _kms: kms,
            _dir: dir,
        };
        for number in 0..100 {
            let request = platform::create("ws", &format!("KEY_{number}"), VALUE);
            bench.service.create_secret(request).await.unwrap();
        }
        bench
    }
}

/// As production does it.
async fn write_usage(secrets: Arc<Secrets>) {
    loop {
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        secrets.write_usage().await;
    }
}

/// Resolves of `names` secrets each, `calls` of them at once.
async fn calls(client: &SecretsServiceClient<Channel>, names: usize, calls: usize) {
    let names: Vec<_> = (0..names).map(|number| format!("KEY_{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let call = |_| {
        let (mut client, mut request) = (client.clone(), platform::resolve("ws", &names));
        request.workflow_id = "4c0ff3a0-7c3e-4000-8000-000000000000".to_owned();
        async move { client.resolve_secrets(request).await.unwrap() }
    };
    join_all((0..calls).map(call)).await;
}

fn resolve(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let bench = runtime.block_on(Bench::start());
    for (at_once, names) in [(1, 1), (1, 10), (1, 100), (64, 1), (64, 10)] {
        let mut group = criterion.benchmark_group(format!("{names} secrets, {at_once} at once"));
        group.throughput(Throughput::Elements(at_once as u64));
        let servers = [
            ("echo", &bench.echo),
            ("resolve", &bench.service),
            ("resolve, usage not recorded", &bench.unrecorded),
        ];
        for (id, client) in servers {
            group.bench_function(BenchmarkId::from_parameter(id), |bencher| {
                bencher.to_async(&runtime).iter(|| calls(client, names, at_once));
            });
        }
        group.finish();
    }
}

/// An action's configuration of 20 KiB with 5 references.
fn action_config() -> String {
    let mut fields = serde_json::Map::new();
    for number in 0..5 {
        let reference = format!("Bearer {{{{secrets.KEY_{number}}}}}");
        fields.insert(format!("header_{number}"), reference.into());
    }
    let mut number = 0;
    while serde_json::to_string(&fields).unwrap().len() < 20 * 1024 {
        let text = "Dear {{ $json.customer.name }},\n\"your order\" has been shipped.";
        fields.insert(format!("field_{number}"), serde_json::json!({"text": text, "n": number}));
        number += 1;
    }
    serde_json::to_string(&fields).unwrap()
}

fn render(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let bench = runtime.block_on(Bench::start());
    let json = action_config();
    let mut group = criterion.benchmark_group("render 20 KiB, 5 references");
    group.throughput(Throughput::Bytes(json.len() as u64));
    for (id, client) in [("echo", &bench.echo), ("render", &bench.service)] {
        group.bench_function(BenchmarkId::from_parameter(id), |bencher| {
            bencher.to_async(&runtime).iter(|| {
                let mut client = client.clone();
                let mut request = RenderTemplateRequest::default();
                request.workspace = "ws".to_owned();
                request.template = Some(Json(json.clone()));
                async move { client.render_template(request).await.unwrap() }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, resolve, render);
criterion_main!(benches);
