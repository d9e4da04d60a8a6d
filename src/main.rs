//! The `workflow-secrets` program: arguments in, exit code out.

use std::{
    alloc::System,
    fmt::Display,
    io::{self, Write as _},
    net::SocketAddr,
    process::ExitCode,
    time::Duration,
};

use clap::Parser as _;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use workflow_secrets::{
    app::{self, Given, RunError},
    cli::{self, CliError},
    config::{
        self, Cli, Command, DevConfig, Faults, ImportConfig, KeysConfig, ProbeConfig, ServeConfig,
    },
    metrics::Metrics,
    process::{self, Memory},
    telemetry::{self, TelemetryConfig},
};
use zeroizing_alloc::ZeroAlloc;

/// Overwrites memory when it is freed, whoever held it: values and keys pass
/// through buffers of the HTTP/2, TLS, protobuf, search and AWS libraries, which do
/// not overwrite theirs.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// The server refuses, or does not serve.
const REFUSED: u8 = 1;
/// Wrong arguments or settings (sysexits EX_USAGE).
const USAGE: u8 = 64;
/// Wrong input (EX_DATAERR).
const INPUT: u8 = 65;
/// The store, KMS client or audit stream refused or cannot be reached at start,
/// or the address is taken; the server cannot be reached (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;
/// A fault while running (EX_SOFTWARE).
const SOFTWARE: u8 = 70;

fn main() -> ExitCode {
    if let Err(error) = process::restrict() {
        return fail(SOFTWARE, error);
    }
    let memory = process::lock_memory();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; they are no faults.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(SOFTWARE, error),
    };
    let code = match cli.command {
        Command::Serve(args) => match ServeConfig::parse(*args, memory) {
            Ok(mut config) => {
                let (listen, admin) = (config.listen, config.admin_listen);
                let telemetry = config.telemetry.take();
                let serve = |given| app::serve(config, given);
                runtime.block_on(start(listen, admin, telemetry, Some(memory), serve))
            }
            Err(faults) => refuse(&faults),
        },
        Command::Dev(args) => match DevConfig::parse(args) {
            Ok(mut config) => {
                let (listen, telemetry) = (config.listen, config.telemetry.take());
                let serve = |given| app::dev(config, given);
                runtime.block_on(start(listen, None, telemetry, None, serve))
            }
            Err(faults) => refuse(&faults),
        },
        Command::Probe(args) => match ProbeConfig::parse(args) {
            Ok(config) => match runtime.block_on(cli::probe(config)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(REFUSED, error),
            },
            Err(faults) => refuse(&faults),
        },
        Command::Import(args) => match ImportConfig::parse(*args) {
            Ok(config) => ended(runtime.block_on(cli::import(config))),
            Err(faults) => refuse(&faults),
        },
        Command::Keys(args) => match KeysConfig::parse(args) {
            Ok(config) => ended(runtime.block_on(cli::keys(config))),
            Err(faults) => refuse(&faults),
        },
        Command::Completions(args) => {
            ended(config::completions(args.shell, &mut io::stdout()).map_err(CliError::Output))
        }
        Command::Man(args) => match config::man_pages(&args.directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(SOFTWARE, format!("{}: {error}", args.directory.display())),
        },
    };
    // Work that is stuck must not hold the process past its grace period.
    runtime.shutdown_timeout(Duration::from_millis(50));
    code
}

/// Sets telemetry up, binds the listeners and serves until a signal comes.
async fn start<F>(
    listen: SocketAddr,
    admin: Option<SocketAddr>,
    telemetry: Option<TelemetryConfig>,
    memory: Option<Memory>,
    serve: impl FnOnce(Given) -> F,
) -> ExitCode
where
    F: Future<Output = Result<Instant, RunError>>,
{
    let telemetry = match telemetry.map(telemetry::init).transpose() {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(SOFTWARE, error),
    };
    match memory {
        Some(Memory::Locked) => tracing::info!("memory is locked: nothing is written to swap"),
        Some(Memory::Unlocked(why)) => tracing::warn!(
            why,
            "memory is not locked: keys and values may be written to swap, if there is any"
        ),
        None => {}
    }
    let listener = match bind(listen, "listening").await {
        Ok(listener) => listener,
        Err(refused) => return refused,
    };
    let admin = match admin {
        None => None,
        Some(address) => match bind(address, "listening for probes and metrics").await {
            Ok(listener) => Some(listener),
            Err(refused) => return refused,
        },
    };
    let shutdown = match signals() {
        Ok(shutdown) => shutdown,
        Err(error) => return fail(SOFTWARE, error),
    };
    let now = Instant::now();
    let (metrics, scrape) = match &telemetry {
        Some(telemetry) => (telemetry.metrics.clone(), telemetry.scrape.clone()),
        None => (Metrics::none(), None),
    };
    let given = Given { listener, admin, metrics, scrape, shutdown };
    let (code, end) = match serve(given).await {
        Ok(end) => (ExitCode::SUCCESS, end),
        Err(error @ RunError::Start(_)) => (fail(UNAVAILABLE, error), now),
        Err(error @ RunError::Serve(_)) => (fail(SOFTWARE, error), now),
    };
    if let Some(telemetry) = telemetry {
        // Blocks; off the runtime's own threads, and never past the end.
        let left = end.saturating_duration_since(Instant::now());
        let flush = tokio::task::spawn_blocking(move || telemetry.shutdown(left));
        let _ = tokio::time::timeout_at(end, flush).await;
    }
    code
}

async fn bind(address: SocketAddr, told: &str) -> Result<TcpListener, ExitCode> {
    let listener = TcpListener::bind(address).await;
    let listener = listener
        .map_err(|error| fail(UNAVAILABLE, format!("cannot listen on {address}: {error}")))?;
    let address = listener.local_addr().map_err(|error| fail(SOFTWARE, error))?;
    tracing::info!(%address, "{told}");
    Ok(listener)
}

/// SIGTERM or SIGINT asks for an orderly end; a second one ends at once.
fn signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let asked = shutdown.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked.is_cancelled() {
                std::process::exit(i32::from(SOFTWARE));
            }
            asked.cancel();
        }
    });
    Ok(shutdown)
}

/// The exit code of a command that calls a server.
fn ended(outcome: Result<(), CliError>) -> ExitCode {
    let code = match &outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(CliError::Refused(_)) => REFUSED,
        Err(CliError::Input(_)) => INPUT,
        Err(CliError::Unavailable(_)) => UNAVAILABLE,
        Err(CliError::Output(_)) => SOFTWARE,
    };
    outcome.map_or_else(|error| fail(code, error), |()| ExitCode::SUCCESS)
}

fn refuse(faults: &Faults) -> ExitCode {
    fail(USAGE, faults.0.join("\nworkflow-secrets: "))
}

fn fail(code: u8, error: impl Display) -> ExitCode {
    // Nothing is left to tell if even stderr is gone.
    let _ = writeln!(io::stderr(), "workflow-secrets: {error}");
    ExitCode::from(code)
}
