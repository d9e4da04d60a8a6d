//! Floor 0: what is counted and timed. Every instrument is defined here, once;
//! the telemetry room sends it out over OTLP and shows it at `/metrics`.
//!
//! Attributes have types of few values, or static texts: none can hold the name
//! of a secret, of a workspace or of a caller, and none a value. Recording
//! allocates nothing. deploy/METRICS.md explains each instrument.

mod labels;
mod rpc;

use std::{sync::Arc, time::Duration};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    metrics::{Counter, Gauge, Histogram, Meter},
};

pub use self::{
    labels::{
        Certificate, KeyLookup, KmsOperation, KmsOutcome, Outcome, StoreOperation, StoreRegression,
        Watched,
    },
    rpc::RpcMethod,
};

/// Bounds of what takes from a tenth of a millisecond to seconds: those of the
/// semantic conventions for RPC, and finer ones below, since most calls of this
/// service end within their first bucket.
const CALLS: [f64; 19] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Ages of data keys: a minute, 15 and 30 minutes, an hour; 1, 7, 30, 90, 180,
/// 365 and 730 days.
const AGES: [f64; 11] = [
    60.0,
    900.0,
    1_800.0,
    3_600.0,
    86_400.0,
    604_800.0,
    2_592_000.0,
    7_776_000.0,
    15_552_000.0,
    31_536_000.0,
    63_072_000.0,
];

/// The instruments. A clone records to the same ones.
#[derive(Clone)]
pub struct Metrics(Arc<Instruments>);

struct Instruments {
    rpc_duration: Histogram<f64>,
    calls: Counter<u64>,
    calls_shed: Counter<u64>,
    key_lookups: Counter<u64>,
    keys_cached: Gauge<u64>,
    keys_oldest: Gauge<f64>,
    key_age: Histogram<f64>,
    kms_duration: Histogram<f64>,
    store_duration: Histogram<f64>,
    store_reconnects: Counter<u64>,
    store_regressions: Counter<u64>,
    audit_failures: Counter<u64>,
    certificate_expiry: Gauge<u64>,
    file_loads: Counter<u64>,
    ready: Gauge<u64>,
}

impl Metrics {
    /// Instruments of this meter.
    pub fn new(meter: &Meter) -> Self {
        let counter = |name, unit, what| {
            meter.u64_counter(name).with_unit(unit).with_description(what).build()
        };
        let duration = |name, what, bounds: &[f64]| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(what);
            histogram.with_boundaries(bounds.to_vec()).build()
        };
        let count =
            |name, unit, what| meter.u64_gauge(name).with_unit(unit).with_description(what).build();
        Self(Arc::new(Instruments {
            rpc_duration: duration(
                "rpc.server.call.duration",
                "Duration of calls, from their headers to the last of the answer.",
                &CALLS,
            ),
            calls: counter(
                "workflow_secrets.calls",
                "{call}",
                "Calls that reached an operation, by outcome.",
            ),
            calls_shed: counter(
                "workflow_secrets.calls.shed",
                "{call}",
                "Calls refused or cut before or around their operation.",
            ),
            key_lookups: counter(
                "workflow_secrets.data_key.lookups",
                "{lookup}",
                "Data keys asked for, by what the cache had.",
            ),
            keys_cached: count("workflow_secrets.data_key.cached", "{key}", "Data keys in memory."),
            keys_oldest: meter
                .f64_gauge("workflow_secrets.data_key.cached.oldest")
                .with_unit("s")
                .with_description("Time since the KMS unwrapped the oldest data key in memory.")
                .build(),
            key_age: duration(
                "workflow_secrets.data_key.age",
                "Time since a data key was made, at each time the KMS unwraps it.",
                &AGES,
            ),
            kms_duration: duration(
                "workflow_secrets.kms.call.duration",
                "Duration of calls to the KMS, retries included.",
                &CALLS,
            ),
            store_duration: duration(
                "workflow_secrets.store.call.duration",
                "Duration of calls to the store, the wait for a connection included.",
                &CALLS,
            ),
            store_reconnects: counter(
                "workflow_secrets.store.reconnects",
                "{connection}",
                "Connections to the store that took the place of a lost one, \
                 but for those that each thread has besides.",
            ),
            store_regressions: counter(
                "workflow_secrets.store.regressions",
                "{workspace}",
                "Workspaces in which the store was seen to have gone back.",
            ),
            audit_failures: counter(
                "workflow_secrets.audit.failures",
                "{write}",
                "Writes of audit lines that failed or came too late.",
            ),
            certificate_expiry: count(
                "workflow_secrets.tls.certificate.expiry",
                "s",
                "When the first certificate of a file expires, in seconds since 1970.",
            ),
            file_loads: counter(
                "workflow_secrets.file.loads",
                "{load}",
                "Loads of watched files; what is refused is tried again every 2 s.",
            ),
            ready: count(
                "workflow_secrets.ready",
                "{state}",
                "Whether the store can be used: 1 or 0.",
            ),
        }))
        .start()
    }

    /// Instruments that record nothing.
    pub fn none() -> Self {
        let provider = opentelemetry::metrics::noop::NoopMeterProvider::new();
        let scope = InstrumentationScope::default();
        Self::new(&opentelemetry::metrics::MeterProvider::meter_with_scope(&provider, scope))
    }

    /// A call of whatever service is over; `error` if that is the server's
    /// fault.
    pub fn rpc(&self, method: &RpcMethod, status: &'static str, error: bool, took: Duration) {
        let [system, method] = method.attributes();
        let status_code = KeyValue::new("rpc.response.status_code", status);
        let took = took.as_secs_f64();
        let histogram = &self.0.rpc_duration;
        if error {
            let kind = KeyValue::new("error.type", status);
            histogram.record(took, &[system, method, status_code, kind]);
        } else {
            histogram.record(took, &[system, method, status_code]);
        }
    }

    /// An operation is over: `ok`, or the reason of its error.
    pub fn call(&self, action: &'static str, outcome: &'static str) {
        let attributes = [KeyValue::new("action", action), KeyValue::new("outcome", outcome)];
        self.0.calls.add(1, &attributes);
    }

    /// A call was refused before its operation, or cut.
    pub fn shed(&self, reason: &'static str) {
        self.0.calls_shed.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// Counters start at 0, not at their first event: a rate of what was not
    /// there before cannot be told.
    fn start(self) -> Self {
        for reason in ["OVERLOADED", "RATE_LIMITED", "TIMEOUT", "UNAUTHENTICATED"] {
            self.0.calls_shed.add(0, &[KeyValue::new("reason", reason)]);
        }
        for found in KeyLookup::ALL {
            self.0.key_lookups.add(0, &[KeyValue::new("result", found.as_str())]);
        }
        for what in Watched::ALL {
            for taken in [true, false] {
                self.file_loads(*what, taken, 0);
            }
        }
        for how in StoreRegression::ALL {
            self.store_regressions(*how, 0);
        }
        self.0.store_reconnects.add(0, &[]);
        self.0.audit_failures.add(0, &[]);
        self
    }

    /// A data key was asked for.
    pub fn key_lookup(&self, found: KeyLookup) {
        self.0.key_lookups.add(1, &[KeyValue::new("result", found.as_str())]);
    }

    /// What is in memory: how many data keys, and for how long the oldest.
    pub fn keys_cached(&self, count: usize, oldest: Duration) {
        self.0.keys_cached.record(u64::try_from(count).unwrap_or(u64::MAX), &[]);
        self.0.keys_oldest.record(oldest.as_secs_f64(), &[]);
    }

    /// A data key of this age was unwrapped.
    pub fn key_age(&self, age: Duration) {
        self.0.key_age.record(age.as_secs_f64(), &[]);
    }

    /// A call to the KMS is over.
    pub fn kms_call(&self, operation: KmsOperation, outcome: KmsOutcome, took: Duration) {
        let attributes = [
            KeyValue::new("operation", operation.as_str()),
            KeyValue::new("outcome", outcome.as_str()),
        ];
        self.0.kms_duration.record(took.as_secs_f64(), &attributes);
    }

    /// A call to the store is over: `ok`, or what kind of failure.
    pub fn store_call(&self, operation: StoreOperation, outcome: Outcome, took: Duration) {
        let attributes = [
            KeyValue::new("operation", operation.as_str()),
            KeyValue::new("outcome", outcome.as_str()),
        ];
        self.0.store_duration.record(took.as_secs_f64(), &attributes);
    }

    /// A lost connection to the store was replaced.
    pub fn store_reconnect(&self) {
        self.0.store_reconnects.add(1, &[]);
    }

    /// The store was seen to have gone back in a workspace.
    pub fn store_regression(&self, how: StoreRegression) {
        self.store_regressions(how, 1);
    }

    fn store_regressions(&self, how: StoreRegression, count: u64) {
        self.0.store_regressions.add(count, &[KeyValue::new("kind", how.as_str())]);
    }

    /// Audit lines were not written in time.
    pub fn audit_failure(&self) {
        self.0.audit_failures.add(1, &[]);
    }

    /// A certificate file was loaded, whose first certificate expires then.
    pub fn certificate_expiry(&self, file: Certificate, seconds: u64) {
        self.0.certificate_expiry.record(seconds, &[KeyValue::new("file", file.as_str())]);
    }

    /// Files were loaded, at start or since they had changed; or refused.
    pub fn file_load(&self, what: Watched, taken: bool) {
        self.file_loads(what, taken, 1);
    }

    fn file_loads(&self, what: Watched, taken: bool, count: u64) {
        let outcome = if taken { "ok" } else { "refused" };
        let attributes = [KeyValue::new("file", what.as_str()), KeyValue::new("outcome", outcome)];
        self.0.file_loads.add(count, &attributes);
    }

    /// Whether the store can be used.
    pub fn ready(&self, ready: bool) {
        self.0.ready.record(ready.into(), &[]);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::none()
    }
}
