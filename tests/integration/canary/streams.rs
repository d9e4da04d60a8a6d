//! Streams that are cut, or go wrong, in the middle of a value, and messages
//! that do not decode.

use futures_util::stream;
use prost::Message as _;
use tonic::{
    Code::{InvalidArgument, Unavailable},
    Request, Response,
    client::Grpc,
};
use tonic_prost::ProstCodec;
use workflow_secrets::grpc::proto::{RedactRequest, RedactResponse};

use super::{
    CANARIES, Stage,
    documents::{WS, clients, redacted},
};
use crate::support::{
    documents::{Open, chunk, open, opening},
    redis_server::until,
};

/// Messages of each call that do not decode.
pub(super) async fn malformed(stage: &mut Stage, canary: &str) {
    /// Any of the requests, with strings that need not be UTF-8.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Malformed {
        #[prost(bytes, tag = "1")]
        first: Vec<u8>,
        #[prost(bytes, tag = "2")]
        second: Vec<u8>,
        #[prost(bytes, tag = "3")]
        third: Vec<u8>,
    }
    let text = [canary.as_bytes(), b"\xff"].concat();
    let document = |tag: usize| {
        let at = |this| if tag == this { text.clone() } else { Vec::new() };
        Malformed { first: at(1), second: at(2), third: at(3) }
    };
    let opening = Malformed { first: document(1).encode_to_vec(), ..Malformed::default() };
    let channel = |caller| {
        let identity = stage.platform.ca.client(&[&format!("spiffe://test/{caller}")]);
        let (platform, replica) = (&stage.platform, &stage.replicas[0]);
        async move { platform.channel(replica, Some(&identity)).await }
    };
    let (people, reader) = (channel("platform").await, channel("executor").await);
    for (channel, method, message) in [
        (&reader, "RenderTemplate", document(2)),
        (&reader, "RenderTemplate", document(3)),
        (&people, "CheckReferences", document(2)),
        (&people, "PrepareTemplate", document(2)),
        (&reader, "Redact", opening.clone()),
    ] {
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let path = format!("/workflowsecrets.v1.SecretsService/{method}").parse().unwrap();
        let codec = ProstCodec::<Malformed, RedactResponse>::default();
        let refused = grpc.unary(Request::new(message), path, codec).await;
        stage.told.refused(refused, InvalidArgument, "MALFORMED_MESSAGE");
    }
    // In the middle of a stream.
    let good = Malformed { first: open(WS, &[]).encode_to_vec(), ..Malformed::default() };
    let part = Malformed { second: canary.as_bytes().to_vec(), ..Malformed::default() };
    let mut grpc = Grpc::new(reader);
    grpc.ready().await.unwrap();
    let path = "/workflowsecrets.v1.SecretsService/Redact".parse().unwrap();
    let codec = ProstCodec::<Malformed, RedactResponse>::default();
    let requests = Request::new(stream::iter([good, part, opening]));
    let mut answers = grpc.streaming(requests, path, codec).await.unwrap().into_inner();
    let refused = loop {
        match answers.message().await {
            Ok(answer) => {
                let answer = answer.expect("an error");
                stage.told.keep(Ok(Response::new(answer))).unwrap();
            }
            Err(status) => break Err(status),
        }
    };
    stage.told.refused::<RedactResponse>(refused, InvalidArgument, "MALFORMED_MESSAGE");
}

/// Streams that are cut, or go wrong, while they hold back a part of a value.
pub(super) async fn provoke(stage: &mut Stage, canary: &str) {
    let (_, mut reader) = clients(stage).await;
    let half = &canary.as_bytes()[..canary.len() / 2];
    for wrong in [opening(open(canary, &[])), RedactRequest::default()] {
        let mut requests = vec![opening(open(WS, &[])), chunk(canary.as_bytes())];
        requests.extend([chunk(half), wrong]);
        let refused = redacted(&mut reader, requests).await.map(Response::new);
        stage.told.refused(refused, InvalidArgument, "INVALID_FIELD");
    }
    let requests = [vec![], vec![chunk(canary.as_bytes())]];
    for requests in requests {
        let refused = redacted(&mut reader, requests).await.map(Response::new);
        stage.told.refused(refused, InvalidArgument, "INVALID_FIELD");
    }
    // The client leaves.
    let lines = |stage: &Stage| stage.replicas[0].stdout().matches("\"found\"").count();
    let before = lines(stage);
    let mut left = Open::start(&mut reader, open(WS, &[])).await;
    left.send(&[canary.as_bytes(), b"\n", half].concat()).await;
    let answer = left.next().await.unwrap().unwrap();
    stage.told.keep(Ok(Response::new(answer))).unwrap();
    drop(left);
    until(|| lines(stage) > before).await;
}

/// Streams that hold back a part of a value when their replica ends.
pub(super) async fn under_way(stage: &mut Stage) -> Vec<Open> {
    let mut streams = Vec::new();
    for (i, canary) in CANARIES.into_iter().enumerate() {
        let mut reader = stage.platform.client(&stage.replicas[i % 2], "executor").await;
        let mut stream = Open::start(&mut reader, open(WS, &[])).await;
        let half = &canary.as_bytes()[..canary.len() / 2];
        stream.send(&[canary.as_bytes(), b"\n", half].concat()).await;
        let answer = stream.next().await.unwrap().unwrap();
        stage.told.keep(Ok(Response::new(answer))).unwrap();
        streams.push(stream);
    }
    streams
}

/// What these streams are told.
pub(super) async fn cut(stage: &mut Stage, streams: Vec<Open>) {
    for mut stream in streams {
        let status = stream.next().await.err().expect("an error");
        stage.told.refused::<RedactResponse>(Err(status), Unavailable, "SHUTTING_DOWN");
    }
}
