//! Calls of a client that tells a deadline and does not keep to it itself, as
//! tonic's does: what ends them is the server.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Body as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tonic::{Status, body::Body};

use super::{
    edge::announce,
    pki::{self, Ca, Identity},
};

/// The error that a call ends with; `None`: it is answered.
pub(crate) async fn call(
    address: std::net::SocketAddr,
    (ca, identity): (&Ca, &Identity),
    method: &str,
    message: &impl Message,
    grpc_timeout: &str,
) -> Option<Status> {
    let message = message.encode_to_vec();
    let framed = [announce(u32::try_from(message.len()).unwrap()), message].concat();
    let request = Request::post(format!("https://localhost/workflowsecrets.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", grpc_timeout)
        .body(Body::new(axum::body::Body::from(Bytes::from(framed))))
        .unwrap();
    let ended = async {
        let config = pki::client_config(ca, Some(identity));
        let stream = TokioIo::new(pki::connect(address, config).await.unwrap());
        let executor = TokioExecutor::new();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut answer = sender.send_request(request).await.unwrap();
        let mut ended = answer.headers().clone();
        loop {
            let body = answer.body_mut();
            let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx));
            match frame.await.map(|frame| frame.unwrap().into_trailers()) {
                Some(Ok(trailers)) => ended.extend(trailers),
                Some(Err(_data)) => {}
                None => break,
            }
        }
        connection.abort();
        ended
    };
    let ended: HeaderMap = tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    let status = Status::from_header_map(&ended).expect("a status");
    (status.code() != tonic::Code::Ok).then_some(status)
}
