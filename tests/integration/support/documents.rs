//! Short words for calls with documents and streams.

use std::{collections::BTreeMap, time::Duration};

use futures_util::stream::{self, StreamExt as _};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tonic_types::StatusExt as _;
use workflow_secrets::grpc::proto::{
    self, check_references_request, redact_request::Request, render_template_request,
};

use super::platform::{Client, resolve};

/// Names under themselves, or `name=alias`.
pub(crate) fn credentials(names: &[&str]) -> Vec<proto::Credential> {
    resolve("ws", names).credentials.clone()
}

pub(crate) fn render_json(workspace: &str, json: &str) -> proto::RenderTemplateRequest {
    render(workspace, render_template_request::Template::Json(json.to_owned()))
}

pub(crate) fn render_text(workspace: &str, text: &str) -> proto::RenderTemplateRequest {
    render(workspace, render_template_request::Template::Text(text.to_owned()))
}

fn render(
    workspace: &str,
    template: render_template_request::Template,
) -> proto::RenderTemplateRequest {
    let mut request = proto::RenderTemplateRequest::default();
    request.workspace = workspace.to_owned();
    request.template = Some(template);
    request.workflow_id = "wf-1".to_owned();
    request.run_id = "run-1".to_owned();
    request
}

pub(crate) fn check_json(workspace: &str, json: &str) -> proto::CheckReferencesRequest {
    let mut request = proto::CheckReferencesRequest::default();
    request.workspace = workspace.to_owned();
    request.template = Some(check_references_request::Template::Json(json.to_owned()));
    request
}

pub(crate) fn prepare(workspace: &str, json: &str) -> proto::PrepareTemplateRequest {
    let mut request = proto::PrepareTemplateRequest::default();
    request.workspace = workspace.to_owned();
    request.json = json.to_owned();
    request
}

/// Looks for these names, or for all.
pub(crate) fn open(workspace: &str, names: &[&str]) -> proto::RedactOpen {
    proto::RedactOpen {
        workspace: workspace.to_owned(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        all_names: names.is_empty(),
        run_id: "run-1".to_owned(),
        ..Default::default()
    }
}

pub(crate) fn opening(open: proto::RedactOpen) -> proto::RedactRequest {
    let mut request = proto::RedactRequest::default();
    request.request = Some(Request::Open(open));
    request
}

pub(crate) fn chunk(bytes: &[u8]) -> proto::RedactRequest {
    let mut request = proto::RedactRequest::default();
    request.request = Some(Request::Chunk(bytes.to_vec()));
    request
}

/// What came back of a stream.
pub(crate) struct Redacted {
    pub(crate) text: String,
    pub(crate) input_bytes: u64,
    /// Name, encoding as a number, count.
    pub(crate) masked: Vec<(String, i32, u64)>,
    pub(crate) unmasked: BTreeMap<String, i32>,
}

/// Sends a text in these chunks and reads it all back.
pub(crate) async fn redact(
    client: &mut Client,
    open: proto::RedactOpen,
    chunks: &[&[u8]],
) -> Result<Redacted, Status> {
    let (bytes, last) = redact_bytes(client, open, chunks).await?;
    let proto::RedactTally { masked, unmasked } = last.tally.clone().expect("a tally");
    let masked = masked.into_iter().map(|one| (one.name, one.encoding, one.count));
    let unmasked = unmasked.into_iter().map(|one| (one.name, one.reason));
    Ok(Redacted {
        text: String::from_utf8(bytes).unwrap(),
        input_bytes: last.input_bytes,
        masked: masked.collect(),
        unmasked: unmasked.collect(),
    })
}

/// The same of bytes that need not be text: what came back, and the last
/// answer.
pub(crate) async fn redact_bytes(
    client: &mut Client,
    open: proto::RedactOpen,
    chunks: &[&[u8]],
) -> Result<(Vec<u8>, proto::RedactResponse), Status> {
    let mut requests = vec![opening(open)];
    requests.extend(chunks.iter().map(|bytes| chunk(bytes)));
    let mut answers = client.redact(stream::iter(requests)).await?.into_inner();
    let (mut bytes, mut last) = (Vec::new(), None);
    while let Some(answer) = answers.message().await? {
        assert!(last.is_none(), "an answer after the tally");
        bytes.extend_from_slice(&answer.chunk);
        last = answer.tally.is_some().then_some(answer);
    }
    Ok((bytes, last.expect("a tally")))
}

/// A stream that stays open.
pub(crate) struct Open {
    pub(crate) requests: mpsc::Sender<proto::RedactRequest>,
    pub(crate) answers: Streaming<proto::RedactResponse>,
}

impl Open {
    pub(crate) async fn start(client: &mut Client, open: proto::RedactOpen) -> Self {
        let (requests, sent) = mpsc::channel(8);
        requests.send(opening(open)).await.unwrap();
        let sent = stream::unfold(sent, |mut sent| async move {
            sent.recv().await.map(|request| (request, sent))
        });
        let answers = client.redact(sent.boxed()).await.unwrap().into_inner();
        Self { requests, answers }
    }

    pub(crate) async fn send(&self, bytes: &[u8]) {
        self.requests.send(chunk(bytes)).await.unwrap();
    }

    /// The next answer, which must come soon.
    pub(crate) async fn next(&mut self) -> Result<Option<proto::RedactResponse>, Status> {
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, self.answers.message()).await.expect("an answer")
    }
}

/// The violations of an error: type, subject and description.
pub(crate) fn violations(status: &Status) -> Vec<(String, String, String)> {
    let details = status.get_error_details();
    let failure = details.precondition_failure().expect("PreconditionFailure");
    let told = failure.violations.iter();
    told.map(|one| (one.r#type.clone(), one.subject.clone(), one.description.clone())).collect()
}
