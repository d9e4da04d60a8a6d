//! The servers that are compared. Each prints, for every line it reads, how often it
//! has allocated memory.

use std::{
    io::{self, BufRead as _, Write as _},
    sync::Arc,
    thread,
};

use arc_swap::ArcSwap;
use clap::Parser as _;
use stats_alloc::INSTRUMENTED_SYSTEM;
use tokio::{net::TcpListener, runtime::Runtime, task::JoinSet};
use tokio_util::sync::CancellationToken;
use workflow_secrets::{
    app::{self, Given, Workers},
    config::{Cli, Command, ServeConfig},
    domain::SecretName,
    grpc::{
        accept::{self, AcceptLimits},
        proto::secrets_service_server::SecretsServiceServer,
        tls,
    },
    process::Memory,
    store::Key,
    telemetry,
};

use crate::echo::{Before, Echo};

pub(crate) const ECHO: &str = "server-echo";
pub(crate) const HMGET: &str = "server-hmget";
pub(crate) const SERVICE: &str = "server-service";

/// Serves until killed.
pub(crate) fn run(role: &str) {
    thread::spawn(|| {
        for _ in io::stdin().lock().lines() {
            let count = INSTRUMENTED_SYSTEM.stats();
            println!("{}", count.allocations + count.reallocations);
            io::stdout().flush().unwrap();
        }
        // Whoever started this is gone.
        std::process::exit(0);
    });
    let arguments = std::env::args().skip(2);
    let cli = Cli::parse_from(
        ["workflow-secrets", "serve"].map(str::to_owned).into_iter().chain(arguments),
    );
    let Command::Serve(args) = cli.command else { panic!("as given above") };
    let store = args.store.clone().unwrap();
    let mut config = ServeConfig::parse(*args, Memory::Unlocked("as it is")).ok().unwrap();
    Runtime::new().unwrap().block_on(async {
        let listener = TcpListener::bind(config.listen).await.unwrap();
        if role == SERVICE {
            // As in production: metrics are counted, whoever asks for them.
            let telemetry = telemetry::init(config.telemetry.take().unwrap()).unwrap();
            let (metrics, scrape) = (telemetry.metrics.clone(), telemetry.scrape.clone());
            let shutdown = CancellationToken::new();
            let given = Given { listener, admin: None, metrics, scrape, shutdown };
            app::serve(config, given).await.unwrap();
            return;
        }
        // On the same threads as the service has.
        let workers = Workers::start().unwrap();
        let tls = Arc::new(ArcSwap::new(tls::load(&config.tls_files).unwrap()));
        let (limits, stop) = (AcceptLimits::default(), CancellationToken::new());
        let incoming = accept::spread(listener, tls, limits, stop, workers.runtimes());
        let mut served = JoinSet::new();
        for (incoming, runtime) in incoming.into_iter().zip(workers.runtimes()) {
            let store = (role == HMGET).then(|| store.clone());
            let serve = async move {
                let before = match store {
                    Some(store) => Some(hmget(&store).await),
                    None => None,
                };
                tonic::transport::Server::builder()
                    .add_service(SecretsServiceServer::new(Echo(before)))
                    .serve_with_incoming(incoming)
                    .await
                    .unwrap();
            };
            served.spawn_on(serve, runtime);
        }
        served.join_all().await;
    });
}

/// Reads what a Resolve reads, and throws it away.
async fn hmget(url: &str) -> Box<Before> {
    let client = redis::Client::open(url).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    Box::new(move |request| {
        let mut command = redis::cmd("HMGET");
        command.arg(format!("workflow-secrets:{{{}}}:records", request.workspace));
        command.arg(Key::active_data_key().as_str());
        for credential in &request.credentials {
            let name = SecretName::parse(&credential.secret).unwrap();
            command.arg(Key::metadata(&name).as_str()).arg(Key::value(&name).as_str());
        }
        let mut connection = connection.clone();
        Box::pin(async move {
            let found: Vec<Option<Vec<u8>>> = command.query_async(&mut connection).await.unwrap();
            assert!(found.iter().all(Option::is_some));
        })
    })
}
