//! Connections: who is at the other end, what they may use up, and a line in the audit log for each request.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use http_body_util::{BodyExt, Limited};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::super::audit::{Decision, Digest, Durability, Entry, Who};
use super::super::core::{Agent, blocking, host_denial};
use super::super::model::{Denial, DenialCode};
use super::auth::{Caller, authorize, tenant_of};
use super::permit::Permit;
use super::routes;
use crate::host::peer::Peer;

/// Part of all connections that one user may have who is no administrator: a quarter.
const SHARE: usize = 4;
/// Part of all connections that those have together who may do nothing with any tenant: a sixteenth. Every user of the host
/// is one of them, and some have thousands of numbers (subuid(5)).
const STRANGERS_SHARE: usize = 16;
/// How long an answer to one of them takes at least, one after the other: what is noted of their requests is on the disk for
/// ever.
const STRANGERS_PACE: Duration = Duration::from_millis(100);
/// Longest head of a request, in bytes.
const HEAD_LEN_MAX: usize = 16 << 10;
/// How long the listener rests after the host refused a connection.
const REST: Duration = Duration::from_millis(50);

/// The server.
#[derive(Clone, Debug)]
pub struct Server {
    agent: Arc<Agent>,
    connections: Connections,
}

/// How many each user has; those of strangers are counted together, under no user.
type Connections = Arc<Mutex<HashMap<Option<u32>, usize>>>;

/// What every request passes.
#[derive(Clone)]
struct Gate {
    agent: Arc<Agent>,
    /// Held by the stranger that is being answered.
    strangers: Arc<tokio::sync::Mutex<()>>,
}

/// A place among the connections; given back when dropped. What a request turns its connection into keeps it.
pub(super) struct Place {
    connections: Connections,
    user: Option<u32>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.user);
            }
        }
    }
}

/// Listens on `path`; what a dead agent left there is replaced. Everybody may connect: who may do what is decided with each
/// request.
///
/// # Errors
/// What the host says, or that somebody answers there.
pub fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let text = format!("{} is in use: another agent answers on it", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

impl Server {
    /// A server of this agent.
    #[must_use]
    pub fn new(agent: Arc<Agent>) -> Self {
        Self { agent, connections: Arc::default() }
    }

    /// Serves for as long as this is polled.
    ///
    /// # Errors
    /// If the socket can't be listened on.
    pub async fn serve(self, listener: std::os::unix::net::UnixListener) -> io::Result<Infallible> {
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let gate = Gate { agent: Arc::clone(&self.agent), strangers: Arc::default() };
        let audited = middleware::from_fn_with_state(gate, audited);
        let router = routes::router(Arc::clone(&self.agent)).layer(audited);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.accept(stream, &router),
                Err(error) => {
                    log::warn!("a connection can't be accepted: {error}");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    fn accept(&self, stream: UnixStream, router: &Router) {
        let config = &self.agent.config;
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => return log::warn!("nobody knows who connected: {error}"),
        };
        let caller = Caller::new(peer, &config.admin_uids, &config.admin_gids);
        let Some(place) = self.place(&caller) else {
            let denial = Denial::new(DenialCode::TooMany, "too many connections are open").hint("close some");
            tokio::spawn(turn_away(stream, denial));
            return;
        };
        let place = Arc::new(place);
        let router = router.clone().layer(Extension(caller)).layer(Extension(Arc::clone(&place)));
        let service = TowerToHyperService::new(router);
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(config.request_timeout)
            .max_buf_size(HEAD_LEN_MAX);
        tokio::spawn(async move {
            let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
            if let Err(error) = connection.await {
                log::debug!("a connection ended: {error}");
            }
            drop(place);
        });
    }

    fn place(&self, caller: &Caller) -> Option<Place> {
        let max = self.agent.config.connections_max;
        let is_stranger = caller.is_stranger(&self.agent.state().tenants);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = connections.values().sum();
        let user = (!is_stranger).then_some(caller.peer.uid);
        let theirs = connections.get(&user).copied().unwrap_or(0);
        // Some are left to administrators, whoever takes the others.
        let share = if is_stranger { STRANGERS_SHARE } else { SHARE };
        let limit = if caller.admin { max } else { (max / share).max(1) };
        let room = if caller.admin { max } else { max - max / SHARE };
        if theirs >= limit || all >= room {
            return None;
        }
        connections.insert(user, theirs + 1);
        Some(Place { connections: Arc::clone(&self.connections), user })
    }
}

async fn turn_away(stream: UnixStream, denial: Denial) {
    let response = denial.into_response();
    let status = response.status();
    let Ok(body) = response.into_body().collect().await else { return };
    let body = body.to_bytes();
    let head = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or(""),
        body.len()
    );
    let _ = stream.try_write(&[head.as_bytes(), &body].concat()); // a fresh socket has room
}

/// Takes the body in, decides whether the request may pass, has it answered, and writes down all of that.
async fn audited(
    State(Gate { agent, strangers }): State<Gate>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let is_stranger = caller.is_stranger(&agent.state().tenants);
    if is_stranger {
        let _turn = strangers.lock().await;
        tokio::time::sleep(STRANGERS_PACE).await;
    }
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let target = request.uri().path_and_query().map_or_else(|| path.clone(), |target| target.to_string());
    let query = request.uri().query().unwrap_or("").to_owned();
    let reads = method == Method::GET || method == Method::HEAD;
    let (parts, body) = request.into_parts();
    let received = receive(body, agent.config.body_len_max, agent.config.request_timeout).await;
    let (digest, answer, rule) = match received {
        Err(denial) => (None, denial.into_response(), "limits"),
        Ok(bytes) => {
            let digest = Digest::of(&bytes);
            let allowed = authorize(&caller, &agent.state().tenants, &method, &path, &query);
            match allowed {
                Err(denial) => (Some(digest), denial.into_response(), "denied"),
                Ok(rule) => {
                    if !reads {
                        // Of a change that was begun there is a word whatever becomes of the agent.
                        let begun = Entry {
                            rule: rule.to_owned(),
                            note: Some("begun".to_owned()),
                            ..entry(&caller, &method, &path, &target, Some(digest))
                        };
                        if let Err(denial) = note(&agent, begun, Durability::Batched).await {
                            return denial.into_response();
                        }
                    }
                    let mut request = Request::from_parts(parts, Body::from(bytes));
                    request.extensions_mut().insert(caller.clone());
                    request.extensions_mut().insert(Permit {
                        agent: Arc::clone(&agent),
                        caller: caller.clone(),
                        method: method.clone(),
                        path: path.clone(),
                        query,
                    });
                    (Some(digest), next.run(request).await, rule)
                }
            }
        }
    };
    let denial = answer.extensions().get::<Denial>();
    let entry = Entry {
        decision: if rule == "denied" || rule == "limits" { Decision::Denied } else { Decision::Allowed },
        rule: rule.to_owned(),
        status: answer.status().as_u16(),
        error: denial.map(|denial| denial.message.clone()),
        ..entry(&caller, &method, &path, &target, digest)
    };
    // What changed nothing may be lost with the host's power; what changed something may not.
    let durability =
        if reads || !answer.status().is_success() { Durability::Batched } else { Durability::Durable };
    match note(&agent, entry, durability).await {
        Ok(()) => answer,
        // Who finds out what is wrong with the host must be able to look; the agent's own log has it.
        Err(_) if reads => answer,
        Err(denial) => {
            denial.hint("what was asked may have been done: look before you ask again").into_response()
        }
    }
}

fn entry(caller: &Caller, method: &Method, path: &str, target: &str, digest: Option<Digest>) -> Entry {
    let peer = &caller.peer;
    Entry {
        who: Who { uid: peer.uid, gid: peer.gid, pid: peer.pid, groups: peer.groups.clone(), name: None },
        tenant: tenant_of(path).map(str::to_owned),
        method: method.to_string(),
        path: target.to_owned(),
        request_sha256: digest,
        decision: Decision::Allowed,
        rule: String::new(),
        status: 0,
        error: None,
        note: None,
    }
}

async fn note(agent: &Arc<Agent>, entry: Entry, durability: Durability) -> Result<(), Denial> {
    let agent = Arc::clone(agent);
    blocking(move || match agent.audit.append(entry, durability) {
        Ok(_) => Ok(()),
        Err(error) => {
            let denial = host_denial(DenialCode::Host, &error);
            let text = format!("the audit log can't be written: {}", denial.message);
            log::error!("{text}");
            Err(Denial { message: text, ..denial })
        }
    })
    .await
}

/// Most bytes of a body that is too large that are taken in, for its client to come to read the answer: one who writes when the
/// connection is closed is only told that.
const DISCARDED_MAX: usize = 16 << 20;

async fn discard(body: &mut Body) {
    let mut left = DISCARDED_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(less) => left = less,
            None => return,
        }
    }
}

async fn receive(mut body: Body, limit: usize, within: Duration) -> Result<Bytes, Denial> {
    match timeout(within, Limited::new(&mut body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            // Who is too slow is not waited for.
            let _ = timeout(within, discard(&mut body)).await;
            let text = format!("the body is too large: at most {limit} bytes are accepted");
            Err(Denial::new(DenialCode::TooLarge, text))
        }
        Ok(Err(error)) => Err(Denial::invalid(format!("the body was cut off: {error}"))),
        Err(_) => {
            let text = format!("the body did not come within {} s", within.as_secs());
            Err(Denial::new(DenialCode::Timeout, text))
        }
    }
}

/// For paths and methods that nobody answers.
pub(super) async fn nothing(request: Request) -> Denial {
    Denial::not_found("path", request.uri().path()).hint("GET /v1/openapi.json lists them")
}

/// For methods that a path does not take.
pub(super) async fn no_method(request: Request) -> Denial {
    let text = format!("{} does not take {}", request.uri().path(), request.method());
    Denial::new(DenialCode::MethodNotAllowed, text).hint("GET /v1/openapi.json lists what it takes")
}

/// An answer with a status of its own.
pub(super) fn with<T: serde::Serialize>(status: StatusCode, body: &T) -> Response {
    (status, axum::Json(body)).into_response()
}
