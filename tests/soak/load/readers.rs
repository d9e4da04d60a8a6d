//! Readers: Resolve, of current and earlier versions, Render, List and Redact.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::stream;
use tonic::{Code, Response, Status};
use workflow_secrets::grpc::proto::{
    ListSecretsRequest, RedactOpen, RedactRequest, RenderTemplateRequest, ResolveSecretsResponse,
    redact_request::Request::{Chunk, Open},
    render_template_request::Template::Text,
};

use super::World;
use crate::{
    oracle::{Secret, State, Verdict},
    rng::Rng,
    site::{Caller, Outcome, REPLICAS, answered, timed},
    support::platform::{Client, create, resolve},
};

/// Reads whatever there is until the soak is over.
pub(crate) async fn read(world: Arc<World>, reader: usize) {
    let mut rng = world.rng("reader", reader);
    let mut executor = world.caller("executor", "reader", reader);
    let mut platform = world.caller("platform", "lister", reader);
    let all: Vec<_> = world.secrets.iter().flatten().cloned().collect();
    while !world.site.is_over() {
        let secret = rng.pick(&all);
        match rng.below(100) {
            0..50 => current(&world, &mut executor.any(), &[Arc::clone(secret)]).await,
            50..65 => {
                let mut some = world.of_workspace(&secret.workspace);
                rng.shuffle(&mut some);
                some.truncate(8);
                current(&world, &mut executor.any(), &some).await;
            }
            65..80 => earlier(&world, &mut executor.any(), secret, &mut rng).await,
            80..95 => render(&world, &mut executor.any(), secret).await,
            _ => list(&world, &mut platform.any(), &secret.workspace).await,
        }
        world.pause(&mut rng).await;
    }
}

/// Which of the names of a Resolve or Render are not there, if that is the
/// error.
fn missing(status: &Status) -> Option<Vec<String>> {
    use tonic_types::StatusExt as _;
    let details = status.get_error_details();
    let info = details.error_info()?;
    if status.code() != Code::FailedPrecondition || info.reason != "SECRETS_UNRESOLVED" {
        return None;
    }
    let violations = &details.precondition_failure()?.violations;
    Some(violations.iter().map(|violation| violation.subject.clone()).collect())
}

/// The same of a call: what it answered, or else what was missing.
async fn looked<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Outcome<Result<T, Vec<String>>> {
    let outcome = answered(async {
        match call.await {
            Ok(answer) => Ok(answer.map(Ok)),
            Err(status) => match missing(&status) {
                Some(names) => Ok(Response::new(Err(names))),
                None => Err(status),
            },
        }
    });
    outcome.await
}

/// Resolves current versions, of one workspace.
async fn current(world: &World, client: &mut Client, secrets: &[Arc<Secret>]) {
    let names: Vec<_> = secrets.iter().map(|secret| secret.name.as_str()).collect();
    let request = timed(resolve(&secrets[0].workspace, &names));
    let floors: Vec<_> = secrets.iter().map(|secret| secret.floor()).collect();
    let outcome = looked(client.resolve_secrets(request)).await;
    let Some(answer) = world.tally.answer("Resolve", outcome) else { return };
    if let Ok(answer) = &answer {
        world.tally.resolved.add(answer.secrets.len() as u64);
    }
    for (secret, floor) in secrets.iter().zip(floors) {
        let verdict = match &answer {
            Ok(answer) => secret.judge(floor, seen(answer, &secret.name)),
            Err(names) if names.contains(&secret.name) => secret.judge(floor, None),
            // Of the others it tells nothing.
            Err(_) => Verdict::Right,
        };
        world.tally.judge("Resolve", verdict);
    }
}

fn seen<'a>(answer: &'a ResolveSecretsResponse, name: &str) -> Option<(u64, &'a str)> {
    answer.secrets.get(name).map(|resolved| (resolved.version, resolved.value.as_str()))
}

/// Resolves an earlier version.
async fn earlier(world: &World, client: &mut Client, secret: &Secret, rng: &mut Rng) {
    let floor = secret.floor();
    let State::Present { version, .. } = secret.now() else { return };
    let pinned = version - rng.below(5.min(version as usize)) as u64;
    let request = timed(resolve(&secret.workspace, &[&format!("{}@{pinned}", secret.name)]));
    let outcome = looked(client.resolve_secrets(request)).await;
    let Some(answer) = world.tally.answer("Resolve a version", outcome) else { return };
    let found = answer.as_ref().ok().and_then(|answer| seen(answer, &secret.name));
    world.tally.resolved.add(u64::from(found.is_some()));
    world.tally.judge("Resolve a version", secret.judge_version(floor, pinned, found));
}

/// Renders a document with a secret in it.
async fn render(world: &World, client: &mut Client, secret: &Secret) {
    let request = RenderTemplateRequest {
        workspace: secret.workspace.clone(),
        template: Some(Text(format!("[{{{{secrets.{}}}}}]", secret.name))),
        credentials: Vec::new(),
        workflow_id: "render".to_owned(),
        run_id: String::new(),
    };
    let floor = secret.floor();
    let outcome = looked(client.render_template(timed(request))).await;
    let Some(answer) = world.tally.answer("Render", outcome) else { return };
    let verdict = match &answer {
        Err(_) => secret.judge(floor, None),
        Ok(answer) => {
            let value = answer.rendered.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            match (value, answer.used.as_slice()) {
                (Some(value), [used]) => secret.judge(floor, Some((used.version, value))),
                _ => Verdict::Wrong(format!("{}: not the document", secret.name)),
            }
        }
    };
    world.tally.judge("Render", verdict);
}

/// Lists a workspace, page by page.
async fn list(world: &World, client: &mut Client, workspace: &str) {
    let secrets = world.of_workspace(workspace);
    let floors: Vec<_> = secrets.iter().map(|secret| secret.floor()).collect();
    let (mut listed, mut page_token) = (HashMap::new(), String::new());
    loop {
        let request = ListSecretsRequest {
            workspace: workspace.to_owned(),
            page_size: 7,
            page_token,
            ..Default::default()
        };
        let outcome = answered(client.list_secrets(timed(request))).await;
        let Some(page) = world.tally.answer("List", outcome) else { return };
        listed.extend(page.secrets.into_iter().map(|secret| (secret.name, secret.version)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    for (secret, floor) in secrets.iter().zip(floors) {
        let version = listed.get(&secret.name).copied();
        world.tally.judge("List", secret.judge_listed(floor, version));
    }
}

/// Secrets that are written once and never changed, in a workspace whose data
/// key is.
pub(crate) struct StillSecrets {
    values: Vec<(String, String)>,
}

impl StillSecrets {
    pub(crate) const WORKSPACE: &str = "still";

    pub(crate) async fn write(caller: &mut Caller) -> Arc<Self> {
        let mut values = Vec::new();
        for number in 0..20 {
            let name = format!("STILL_{number}");
            let value = format!("still waters {number} {}", "run deep ".repeat(number));
            let request = create(Self::WORKSPACE, &name, &value);
            caller.any().create_secret(request).await.unwrap();
            values.push((name, value));
        }
        Arc::new(Self { values })
    }

    async fn check(&self, world: &World, client: &mut Client) {
        let names: Vec<_> = self.values.iter().map(|(name, _)| name.as_str()).collect();
        let request = timed(resolve(Self::WORKSPACE, &names));
        let outcome = looked(client.resolve_secrets(request)).await;
        let Some(answer) = world.tally.answer("Resolve", outcome) else { return };
        world.tally.resolved.add(answer.as_ref().map_or(0, |a| a.secrets.len() as u64));
        for (name, value) in &self.values {
            let verdict = match &answer {
                Ok(answer) if seen(answer, name) == Some((1, value)) => Verdict::Right,
                Ok(_) => Verdict::Wrong(format!("{name} has changed")),
                Err(missing) if !missing.contains(name) => Verdict::Right,
                Err(_) => Verdict::Lost(name.clone()),
            };
            world.tally.judge("Resolve", verdict);
        }
    }
}

/// Reads what never changes, while its workspace gets one data key after the
/// other.
pub(crate) async fn read_still(world: Arc<World>, still: Arc<StillSecrets>) {
    let mut rng = world.rng("still", 0);
    let mut caller = world.caller("executor", "still", 0);
    while !world.site.is_over() {
        still.check(&world, &mut caller.any()).await;
        world.pause(&mut rng).await;
    }
}

/// Masks output that holds values.
pub(crate) async fn redact(world: Arc<World>, still: Arc<StillSecrets>) {
    let mut rng = world.rng("redact", 0);
    let mut caller = world.caller("executor", "redact", 0);
    while !world.site.is_over() {
        // Ten a second are allowed.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (name, value) = rng.pick(&still.values);
        let open = RedactOpen {
            workspace: StillSecrets::WORKSPACE.to_owned(),
            names: vec![name.clone()],
            ..Default::default()
        };
        let output = format!("it printed {value}, twice: {value}");
        let (first, second) = output.split_at(rng.below(output.len()));
        let chunks = [first, second].map(|text| Chunk(text.as_bytes().to_vec()));
        let messages: Vec<_> = std::iter::once(Open(open))
            .chain(chunks)
            .map(|request| RedactRequest { request: Some(request) })
            .collect();
        let outcome = answered(masked(&mut caller.any(), messages)).await;
        let Some(passed) = world.tally.answer("Redact", outcome) else { continue };
        let expected = format!("it printed {{{{secrets.{name}}}}}, twice: {{{{secrets.{name}}}}}");
        let verdict = if passed == expected {
            Verdict::Right
        } else {
            Verdict::Wrong(format!("{name}: {passed:?}"))
        };
        world.tally.judge("Redact", verdict);
    }
}

/// What comes out of a stream, once its tally is there.
async fn masked(
    client: &mut Client,
    messages: Vec<RedactRequest>,
) -> Result<Response<String>, Status> {
    let mut answers = client.redact(stream::iter(messages)).await?.into_inner();
    let mut passed = Vec::new();
    while let Some(answer) = answers.message().await? {
        passed.extend_from_slice(&answer.chunk);
        if answer.tally.is_some() {
            return Ok(Response::new(String::from_utf8_lossy(&passed).into_owned()));
        }
    }
    Err(Status::unavailable("cut"))
}

/// At the end, with nothing under way: all there is, on each replica.
pub(crate) async fn verify(world: &World, still: &StillSecrets) {
    let mut executor = world.caller("executor", "verify", 0);
    let mut platform = world.caller("platform", "verify", 1);
    for replica in 0..REPLICAS {
        for secret in world.secrets.iter().flatten() {
            current(world, &mut executor.of(replica), std::slice::from_ref(secret)).await;
        }
        for number in 0..super::WORKSPACES {
            list(world, &mut platform.of(replica), &format!("ws{number}")).await;
        }
        still.check(world, &mut executor.of(replica)).await;
    }
}
