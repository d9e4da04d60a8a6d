//! AWS KMS in this process: JSON 1.1 over HTTP, with real cryptography, key
//! states, aliases, recorded calls and faults on demand.

mod key;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_lc_rs::rand;
use aws_sdk_kms::config::{Credentials, SharedCredentialsProvider};
use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    extract::State,
    http::{Request, Response, StatusCode},
    routing::post,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::stream;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use workflow_secrets::kms::aws::{AwsKms, AwsKmsConfig, KmsKeyId};

pub(crate) use self::key::KeyState;
use self::key::{Failure, Key};

/// Region and account of all keys.
pub(crate) const REGION: &str = "eu-west-1";
const ACCOUNT: &str = "111122223333";

/// The credentials it takes; the secret is not checked.
pub(crate) const ACCESS_KEY_ID: &str = "AKIDEXAMPLE";

/// SDK settings with test credentials; reads neither environment nor files.
pub(crate) fn sdk_config() -> SdkConfig {
    let credentials = Credentials::new(ACCESS_KEY_ID, "test", None, None, "test");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new(REGION))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}

/// What goes wrong before a call is looked at.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// An error: HTTP status and exception name.
    Error(u16, &'static str),
    /// `ThrottlingException`.
    Throttle,
    /// No answer while the connection lasts.
    Hang,
    /// The connection is closed without an answer.
    Drop,
    /// The answer comes later.
    Delay(Duration),
    /// 200 with this body.
    Body(&'static str),
    /// The connection is closed in the middle of the answer.
    CutBody,
    /// The answer is right, but for a plaintext of another length.
    ShortPlaintext,
}

/// A call, as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) operation: String,
    /// Of ReEncrypt, the source.
    pub(crate) key_id: String,
    /// Of ReEncrypt only.
    pub(crate) destination: String,
    pub(crate) algorithm: String,
    pub(crate) context: BTreeMap<String, String>,
}

#[derive(Default)]
struct Inner {
    /// Of each call, when it came in.
    arrivals: Vec<Instant>,
    keys: Vec<Key>,
    aliases: BTreeMap<String, String>,
    faults: VecDeque<Fault>,
    standing_fault: Option<Fault>,
    /// Of one workspace only.
    workspace_fault: Option<(String, Fault)>,
    calls: Vec<Call>,
    data_keys: Vec<[u8; 32]>,
    in_flight: usize,
    max_in_flight: usize,
    /// By workspace: those in flight, and the most there ever were.
    of_workspaces: BTreeMap<String, (usize, usize)>,
}

type Shared = Arc<Mutex<Inner>>;

/// The endpoint. Ends with the value.
pub(crate) struct KmsEndpoint {
    inner: Shared,
    address: SocketAddr,
    server: JoinSet<()>,
}

impl KmsEndpoint {
    /// Starts on a free port, without keys.
    pub(crate) async fn start() -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut endpoint = Self { inner: Shared::default(), address, server: JoinSet::new() };
        endpoint.restart().await;
        endpoint
    }

    /// Closes the port and every connection.
    pub(crate) async fn stop(&mut self) {
        self.server.shutdown().await;
    }

    /// Listens again on the same port, with all keys.
    pub(crate) async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        self.server.spawn(serve(listener, Arc::clone(&self.inner)));
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The adapter under test on `key`, with the default limits.
    pub(crate) fn kms(&self, key: &str) -> AwsKms {
        self.kms_with(AwsKmsConfig::new(KmsKeyId::parse(key).unwrap()))
    }

    /// The adapter under test on this endpoint.
    pub(crate) fn kms_with(&self, config: AwsKmsConfig) -> AwsKms {
        AwsKms::new(AwsKmsConfig { endpoint: Some(self.url()), ..config }, &sdk_config()).unwrap()
    }

    /// A new enabled key; returns its ARN.
    pub(crate) fn create_key(&self) -> String {
        self.add_key(Uuid::new_v4(), &Uuid::to_string)
    }

    /// The same, multi-Region.
    pub(crate) fn create_multi_region_key(&self) -> String {
        self.add_key(Uuid::new_v4(), &|id| format!("mrk-{}", id.simple()))
    }

    fn add_key(&self, id: Uuid, name: &dyn Fn(&Uuid) -> String) -> String {
        let arn = format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/{}", name(&id));
        self.lock().keys.push(Key::new(arn.clone(), id));
        arn
    }

    /// Points `alias/...` to a key; also moves it.
    pub(crate) fn set_alias(&self, alias: &str, arn: &str) {
        self.lock().aliases.insert(alias.to_owned(), arn.to_owned());
    }

    pub(crate) fn set_state(&self, arn: &str, state: KeyState) {
        self.lock().keys.iter_mut().find(|key| key.arn == arn).unwrap().state = state;
    }

    /// Every call from now on, until [`Self::heal`].
    pub(crate) fn fault(&self, fault: Fault) {
        self.lock().standing_fault = Some(fault);
    }

    /// The next `times` calls.
    pub(crate) fn fault_times(&self, times: usize, fault: Fault) {
        self.lock().faults.extend(std::iter::repeat_n(fault, times));
    }

    /// Every call for a workspace from now on, until [`Self::heal`].
    pub(crate) fn fault_in(&self, workspace: &str, fault: Fault) {
        self.lock().workspace_fault = Some((workspace.to_owned(), fault));
    }

    /// No more faults.
    pub(crate) fn heal(&self) {
        let mut inner = self.lock();
        inner.faults.clear();
        inner.standing_fault = None;
        inner.workspace_fault = None;
    }

    /// Calls of Decrypt so far, failed ones included.
    pub(crate) fn decrypts(&self) -> usize {
        self.count(|operation| operation == "Decrypt")
    }

    /// The same of GenerateDataKey and GenerateDataKeyWithoutPlaintext.
    pub(crate) fn generates(&self) -> usize {
        self.count(|operation| operation.starts_with("GenerateDataKey"))
    }

    /// The same of ReEncrypt.
    pub(crate) fn rewraps(&self) -> usize {
        self.count(|operation| operation == "ReEncrypt")
    }

    fn count(&self, is: impl Fn(&str) -> bool) -> usize {
        self.lock().calls.iter().filter(|call| is(&call.operation)).count()
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// When each of them came in.
    pub(crate) fn arrivals(&self) -> Vec<Instant> {
        self.lock().arrivals.clone()
    }

    /// The plaintext of all data keys it made, to look for where none may be.
    pub(crate) fn data_keys(&self) -> Vec<[u8; 32]> {
        self.lock().data_keys.clone()
    }

    /// The most calls that were in flight at the same time.
    pub(crate) fn max_in_flight(&self) -> usize {
        self.lock().max_in_flight
    }

    /// Calls for a workspace that are in flight now, and the most there were.
    pub(crate) fn in_flight_of(&self, workspace: &str) -> (usize, usize) {
        self.lock().of_workspaces.get(workspace).copied().unwrap_or_default()
    }

    /// Encrypts anything, as Encrypt would.
    pub(crate) fn encrypt(
        &self,
        arn: &str,
        plaintext: &[u8],
        context: &[(&str, String)],
    ) -> Vec<u8> {
        let context = context.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        self.lock().usable(arn).unwrap().encrypt(plaintext, &context.collect())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

async fn serve(listener: TcpListener, inner: Shared) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        while connections.try_join_next().is_some() {}
        let close = CancellationToken::new();
        let router = Router::new()
            .route("/", post(handle))
            .layer(Extension(close.clone()))
            .with_state(Arc::clone(&inner));
        connections.spawn(async move {
            let http = auto::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(router);
            tokio::select! {
                _ = http.serve_connection(TokioIo::new(stream), service) => {}
                () = close.cancelled() => {}
            }
        });
    }
}

/// Counts a call as long as it is being served.
struct InFlight(Shared, String);

impl InFlight {
    fn count(shared: &Shared, inner: &mut Inner, workspace: &str) -> Self {
        inner.in_flight += 1;
        inner.max_in_flight = inner.max_in_flight.max(inner.in_flight);
        let (now, most) = inner.of_workspaces.entry(workspace.to_owned()).or_default();
        *now += 1;
        *most = (*most).max(*now);
        Self(Arc::clone(shared), workspace.to_owned())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut inner = self.0.lock().unwrap();
        inner.in_flight -= 1;
        inner.of_workspaces.get_mut(&self.1).unwrap().0 -= 1;
    }
}

async fn handle(
    State(inner): State<Shared>,
    Extension(close): Extension<CancellationToken>,
    request: Request<Body>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| {
        parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    };
    let operation = header("x-amz-target").replace("TrentService.", "");
    let signed = header("authorization")
        .starts_with(&format!("AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/"));
    let body = to_bytes(body, 64 * 1024).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();

    let (_in_flight, fault) = {
        let mut state = inner.lock().unwrap();
        let context = context_of(&body);
        let workspace = context.get("workspace").cloned().unwrap_or_default();
        state.arrivals.push(Instant::now());
        state.calls.push(Call {
            operation: operation.clone(),
            key_id: text(&body, &["KeyId", "SourceKeyId"]),
            destination: text(&body, &["DestinationKeyId"]),
            algorithm: text(&body, &["EncryptionAlgorithm", "SourceEncryptionAlgorithm"]),
            context,
        });
        let of_workspace = state.workspace_fault.as_ref().filter(|(of, _)| *of == workspace);
        let of_workspace = of_workspace.map(|(_, fault)| *fault);
        let fault = state.faults.pop_front().or(state.standing_fault).or(of_workspace);
        (InFlight::count(&inner, &mut state, &workspace), fault)
    };
    match fault {
        None => {}
        Some(Fault::Error(status, name)) => return failure((status, name, "Injected".to_owned())),
        Some(Fault::Throttle) => {
            return failure((400, "ThrottlingException", "Rate exceeded".to_owned()));
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Drop) => {
            close.cancel();
            std::future::pending().await
        }
        Some(Fault::Delay(duration)) => tokio::time::sleep(duration).await,
        Some(Fault::Body(text)) => return answer(200, text.to_owned()),
        Some(Fault::CutBody) => {
            let begun = Ok::<_, std::io::Error>(Bytes::from_static(b"{\"KeyId\": \"arn:"));
            let cut = Err(std::io::Error::other("cut"));
            let body = Body::from_stream(stream::iter([begun, cut]));
            return Response::builder().header("content-length", "500").body(body).unwrap();
        }
        Some(Fault::ShortPlaintext) => {}
    }
    if !signed {
        let message = "Request is missing Authentication Token".to_owned();
        return failure((400, "MissingAuthenticationTokenException", message));
    }
    let mut result = inner.lock().unwrap().call(&operation, &body);
    if let (Some(Fault::ShortPlaintext), Ok(answer)) = (fault, &mut result) {
        answer["Plaintext"] = STANDARD.encode([7; 16]).into();
    }
    result.map_or_else(failure, |value| answer(200, value.to_string()))
}

fn answer(status: u16, body: String) -> Response<Body> {
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("content-type", "application/x-amz-json-1.1")
        .header("x-amzn-requestid", Uuid::new_v4().to_string())
        .body(Body::from(body))
        .unwrap()
}

fn failure((status, name, message): Failure) -> Response<Body> {
    answer(status, json!({"__type": name, "message": message}).to_string())
}

/// The first of the fields that is there.
fn text(body: &Value, fields: &[&str]) -> String {
    fields.iter().find_map(|field| body[*field].as_str()).unwrap_or_default().to_owned()
}

/// Of ReEncrypt, the one for both sides; what differs shows as none.
fn context_of(body: &Value) -> BTreeMap<String, String> {
    let [source, destination] = ["SourceEncryptionContext", "DestinationEncryptionContext"];
    let context = match (&body["EncryptionContext"], &body[source]) {
        (Value::Null, source) if *source == body[destination] => source,
        (one, _) => one,
    };
    serde_json::from_value(context.clone()).unwrap_or_default()
}

impl Inner {
    /// From one key under another. Each must be usable, in its own context.
    fn re_encrypt(&self, body: &Value) -> Result<Value, Failure> {
        let context = |field: &str| -> BTreeMap<String, String> {
            serde_json::from_value(body[field].clone()).unwrap_or_default()
        };
        let key = |field: &str| self.usable(body[field].as_str().unwrap_or_default());
        let (source, destination) = (key("SourceKeyId")?, key("DestinationKeyId")?);
        let blob = STANDARD.decode(body["CiphertextBlob"].as_str().unwrap_or_default());
        let plaintext =
            source.decrypt(&blob.unwrap_or_default(), &context("SourceEncryptionContext"))?;
        let blob = destination.encrypt(&plaintext, &context("DestinationEncryptionContext"));
        Ok(json!({
            "CiphertextBlob": STANDARD.encode(blob),
            "SourceKeyId": source.arn,
            "KeyId": destination.arn,
            "SourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
            "DestinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        }))
    }

    fn call(&mut self, operation: &str, body: &Value) -> Result<Value, Failure> {
        if operation == "ReEncrypt" {
            return self.re_encrypt(body);
        }
        let context = context_of(body);
        let key = self.usable(body["KeyId"].as_str().unwrap_or_default())?;
        match operation {
            "GenerateDataKey" | "GenerateDataKeyWithoutPlaintext" => {
                if body["KeySpec"] != "AES_256" {
                    return Err((400, "ValidationException", "KeySpec".to_owned()));
                }
                let mut plaintext = [0; 32];
                rand::fill(&mut plaintext).unwrap();
                let blob = STANDARD.encode(key.encrypt(&plaintext, &context));
                let mut answer = json!({"KeyId": key.arn, "CiphertextBlob": blob});
                self.data_keys.push(plaintext);
                if operation == "GenerateDataKey" {
                    answer["Plaintext"] = STANDARD.encode(plaintext).into();
                }
                Ok(answer)
            }
            "Decrypt" => {
                let blob = STANDARD.decode(body["CiphertextBlob"].as_str().unwrap_or_default());
                let plaintext = key.decrypt(&blob.unwrap_or_default(), &context)?;
                Ok(json!({
                    "KeyId": key.arn,
                    "Plaintext": STANDARD.encode(plaintext),
                    "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
                }))
            }
            _ => Err((400, "UnknownOperationException", String::new())),
        }
    }

    /// Looks a `KeyId` of any form up and checks the key's state.
    fn usable(&self, key_id: &str) -> Result<&Key, Failure> {
        let resource = key_id.strip_prefix(&format!("arn:aws:kms:{REGION}:{ACCOUNT}:"));
        let resource = resource.unwrap_or(key_id);
        let named = self.aliases.get(resource).map_or(resource, String::as_str);
        let is = |key: &&Key| {
            let (path, id) = (key.arn.rsplit(':').next(), key.arn.rsplit('/').next());
            [Some(&*key.arn), path, id].contains(&Some(named))
        };
        let missing = || (400, "NotFoundException", format!("Key '{key_id}' does not exist"));
        let key = self.keys.iter().find(is).ok_or_else(missing)?;
        key.check_state()?;
        Ok(key)
    }
}
