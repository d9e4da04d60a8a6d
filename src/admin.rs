//! Floor 5: health and metrics over plain HTTP/1.1, for probes and Prometheus,
//! on a listener of its own.
//!
//! | Path | Answer |
//! |---|---|
//! | `/healthz` | 200 until shutdown, then 503: as gRPC health of the empty name |
//! | `/readyz` | 200 while the API can be served, else 503: as gRPC health of its name |
//! | `/metrics` | metrics in the text format of Prometheus |
//!
//! GET and HEAD; one request per connection. Nothing secret is told, and no
//! request is read beyond its headers. Whoever fills the port with connections
//! keeps no probe of another address from its answer.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    grpc::{Health, accept::network, transients::Transients},
    telemetry::Scrape,
};

/// Connections at once; for one more, another is closed, see [`Transients`].
const CONNECTIONS: usize = 32;
/// Bytes of a request's head.
const HEAD_BYTES: usize = 8 * 1024;
/// Its headers.
const HEADERS: usize = 64;
/// They must have come by then.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(10);
/// How long accepting rests after an error such as too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// What is told.
#[derive(Clone)]
pub struct Admin {
    /// Health.
    pub health: Health,
    /// Metrics; without them, `/metrics` is not found.
    pub scrape: Option<Scrape>,
}

impl Admin {
    /// Answers until shutdown.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let places = Transients::new(CONNECTIONS);
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, peer)) = accepted else {
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            };
            let (stay, _) = places.enter(network(peer.ip()));
            let (admin, shutdown) = (self.clone(), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = stay.over() => {}
                    _ = tokio::time::timeout(LIFE, admin.connection(stream)) => {}
                }
            });
        }
    }

    async fn connection(self, stream: TcpStream) {
        let answer = service_fn(|request: Request<Incoming>| {
            std::future::ready(Ok::<_, Infallible>(
                self.answer(request.method(), request.uri().path()),
            ))
        });
        // How it ends is the client's matter.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), answer)
            .await;
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if ![Method::GET, Method::HEAD].contains(method) {
            let mut refused =
                told(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n".to_owned());
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match (path, &self.scrape) {
            ("/healthz", _) => healthy(self.health.now().live),
            ("/readyz", _) => healthy(self.health.now().ready),
            ("/metrics", Some(scrape)) => match scrape.text() {
                Ok(text) => told(StatusCode::OK, METRICS, text),
                Err(error) => told(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error),
            },
            _ => told(StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned()),
        }
    }
}

fn healthy(yes: bool) -> Response<Full<Bytes>> {
    match yes {
        true => told(StatusCode::OK, TEXT, "ok\n".to_owned()),
        false => told(StatusCode::SERVICE_UNAVAILABLE, TEXT, "unavailable\n".to_owned()),
    }
}

fn told(status: StatusCode, kind: HeaderValue, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
