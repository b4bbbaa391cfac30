//! An agent that does what a test tells it: real HTTP on a Unix socket in a directory of its own, answers of the API's types.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::mpsc as channel;
use vmm::agent::model::{ErrorBody, Operation, Vm};

/// What a test answers with.
pub enum Reply {
    /// A status and JSON.
    Json(u16, Value),
    /// A status and anything.
    Text(u16, String),
    /// Bytes as they are sent, until the sender goes.
    Stream(channel::UnboundedReceiver<Bytes>),
    /// A console: what the agent sends, and where what it gets goes.
    Console(channel::UnboundedReceiver<Bytes>, mpsc::Sender<Vec<u8>>),
    /// Nothing, ever.
    Silence,
    /// The connection is closed.
    Hangup,
}

/// A request, as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// `GET /v1/vms?x=y`.
    pub line: String,
    /// Its body; null if there is none.
    pub body: Value,
}

type Answer = Box<dyn FnMut(&Asked) -> Reply + Send>;

#[derive(Default)]
struct State {
    /// By the beginning of the request's line.
    answers: HashMap<String, Answer>,
    asked: Vec<Asked>,
}

/// The agent. It ends with its process.
pub struct Fake {
    dir: TempDir,
    state: Arc<Mutex<State>>,
}

impl Fake {
    /// It listens, and knows nothing yet.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(listener, shared));
        });
        Self { dir, state }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// A directory that ends with it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Answers requests of this line (without its query, unless it has one) so.
    pub fn on(&self, line: &str, answer: impl FnMut(&Asked) -> Reply + Send + 'static) -> &Self {
        self.state.lock().unwrap().answers.insert(line.to_owned(), Box::new(answer));
        self
    }

    /// Answers with this JSON, always.
    pub fn json(&self, line: &str, status: u16, value: Value) -> &Self {
        self.on(line, move |_| Reply::Json(status, value.clone()))
    }

    /// What was asked for, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    /// The lines of what was asked for.
    pub fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    /// The body of the request with this line.
    pub fn body(&self, line: &str) -> Value {
        let asked = self.asked();
        let found = asked.iter().find(|asked| asked.line == line);
        found.unwrap_or_else(|| panic!("no {line} in {asked:?}")).body.clone()
    }
}

async fn serve(listener: std::os::unix::net::UnixListener, state: Arc<Mutex<State>>) {
    let listener = UnixListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let state = Arc::clone(&state);
        let service = service_fn(move |request| answer(request, Arc::clone(&state)));
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection.with_upgrades());
    }
}

type Body = BoxBody<Bytes, Infallible>;

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Body>, std::io::Error> {
    let line = format!("{} {}", request.method(), request.uri());
    let upgrade = request.headers().get("upgrade").cloned();
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let body =
        serde_json::from_slice(&body).unwrap_or(Value::String(String::from_utf8_lossy(&body).into_owned()));
    let asked = Asked { line, body: if body == "" { Value::Null } else { body } };
    let reply = {
        let mut state = state.lock().unwrap();
        state.asked.push(asked.clone());
        let path = asked.line.split('?').next().unwrap().to_owned();
        let key = if state.answers.contains_key(&asked.line) { asked.line.clone() } else { path };
        match state.answers.get_mut(&key) {
            Some(answer) => answer(&asked),
            None => Reply::Json(404, refusal("not_found", &format!("there is no {}", asked.line), None)),
        }
    };
    let of = |status: u16| Response::builder().status(status);
    let response = match reply {
        Reply::Json(status, value) => of(status).body(full(value.to_string())),
        Reply::Text(status, text) => of(status).body(full(text)),
        Reply::Stream(receiver) => {
            let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.map(|bytes| (Ok(Frame::data(bytes)), receiver))
            });
            of(200).body(BodyExt::boxed(StreamBody::new(pieces)))
        }
        Reply::Console(receiver, sender) => {
            assert_eq!(upgrade.unwrap(), "yun-console");
            tokio::spawn(console(Request::from_parts(parts, ()), receiver, sender));
            of(101).header("connection", "upgrade").header("upgrade", "yun-console").body(full(""))
        }
        Reply::Silence => std::future::pending().await,
        Reply::Hangup => return Err(std::io::Error::other("as the test wants it")),
    };
    Ok(response.unwrap())
}

async fn console(
    request: Request<()>,
    mut from_test: channel::UnboundedReceiver<Bytes>,
    to_test: mpsc::Sender<Vec<u8>>,
) {
    let upgraded = hyper::upgrade::on(request).await.unwrap();
    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            bytes = from_test.recv() => match bytes {
                Some(bytes) => write.write_all(&bytes).await.unwrap(),
                None => return,
            },
            length = read.read(&mut buffer) => match length {
                Ok(length @ 1..) => to_test.send(buffer[..length].to_vec()).unwrap_or_default(),
                // Dropping the sender tells the test.
                _ => return,
            },
        }
    }
}

/// An `ErrorBody`.
pub fn refusal(code: &str, message: &str, hint: Option<&str>) -> Value {
    let mut body = json!({"error": {"code": code, "message": message}});
    if let Some(hint) = hint {
        body["error"]["hint"] = hint.into();
    }
    serde_json::from_value::<ErrorBody>(body.clone()).unwrap();
    body
}

/// A VM `acme/NAME`, in the API's words.
pub fn vm(name: &str, state: &str) -> Value {
    let vm = json!({
        "tenant": "acme", "name": name, "id": "vm-0123456789abcdef", "generation": 1,
        "spec": {"vcpus": 2, "memory_mib": 1536, "image": "debian", "power": "running", "stop_timeout_seconds": 30},
        "status": {
            "state": state, "reason": "", "since": "2026-11-24T08:00:00Z", "observed_generation": 1, "incarnation": 1,
            "restarts": 0,
            "interfaces": [{"name": "eth0", "tap": "yt0", "mac": "02:00:00:00:00:01", "ipv4": "10.0.0.2", "class": "isolated"}]
        },
        "created_at": "2026-11-24T08:00:00Z"
    });
    // What the test takes for the API's is that.
    let typed: Vm = serde_json::from_value(vm.clone()).unwrap();
    assert_eq!(serde_json::to_value(typed).unwrap(), vm);
    vm
}

/// An operation `op-1` on `acme/web`.
pub fn operation(kind: &str, state: &str) -> Value {
    let mut operation = json!({
        "id": "op-1", "kind": kind, "tenant": "acme", "target": "web", "state": state, "done": 1, "total": 2,
        "unit": "steps", "cancellable": true, "requestor": "uid:0", "created_at": "2026-11-24T08:00:00Z"
    });
    if state != "running" {
        operation["ended_at"] = "2026-11-24T08:00:01Z".into();
    }
    serde_json::from_value::<Operation>(operation.clone()).unwrap();
    operation
}
