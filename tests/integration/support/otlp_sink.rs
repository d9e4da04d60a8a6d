//! An OpenTelemetry collector that keeps what it is sent.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Body, http::Request};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{Response, Status, server::UnaryService};
use tonic_prost::ProstCodec;

/// `ExportTraceServiceRequest`; its spans stay encoded.
#[derive(Clone, PartialEq, prost::Message)]
struct Export {
    #[prost(bytes, repeated, tag = "1")]
    resource_spans: Vec<Vec<u8>>,
}

type Shared = Arc<Mutex<Vec<u8>>>;

struct Keep(Shared);

impl UnaryService<Export> for Keep {
    type Response = ();
    type Future = Ready<Result<Response<()>, Status>>;

    fn call(&mut self, request: tonic::Request<Export>) -> Self::Future {
        self.0.lock().unwrap().extend(request.into_inner().resource_spans.concat());
        ready(Ok(Response::new(())))
    }
}

/// The collector. Ends with the value.
pub(crate) struct OtlpSink {
    kept: Shared,
    port: u16,
    _server: JoinSet<()>,
}

impl OtlpSink {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (kept, mut server) = (Shared::default(), JoinSet::new());
        server.spawn(serve(listener, Arc::clone(&kept)));
        Self { kept, port, _server: server }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The spans so far.
    pub(crate) fn kept(&self) -> Vec<u8> {
        self.kept.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, kept: Shared) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let kept = Arc::clone(&kept);
        let export = tower::service_fn(move |request: Request<Body>| {
            let keep = Keep(Arc::clone(&kept));
            async move {
                let codec = ProstCodec::<(), Export>::default();
                Ok::<_, Infallible>(tonic::server::Grpc::new(codec).unary(keep, request).await)
            }
        });
        connections.spawn(async move {
            let service = TowerToHyperService::new(Router::new().fallback_service(export));
            let http = auto::Builder::new(TokioExecutor::new());
            // Ends when the service closes the connection.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
