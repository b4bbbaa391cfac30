//! Answers without an end: events, logs, and the console of a VM.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::unix::pipe;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use utoipa::{IntoParams, ToSchema};

use super::super::core::{Agent, blocking, store_denial};
use super::super::model::{Denial, DenialCode, Event, Name};
use super::auth::Caller;
use super::permit::Permit;
use super::reply::{At, Params, Two};
use super::server::Place;

/// What a console is upgraded to.
const PROTOCOL: &str = "yun-console";
/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Most that is shown of a log or console before it is followed, in bytes.
const SHOWN_MAX: u64 = 1 << 20;
/// Longest time a reader may take nothing, before it is given up.
const STALL: Duration = Duration::from_secs(30);

/// Parameters of `GET /v1/events`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Number of the last event that is known already.
    since: u64,
    /// Only events of this tenant.
    tenant: Option<Name>,
    /// Whether to go on with what happens.
    follow: bool,
}

struct EventCursor {
    agent: Arc<Agent>,
    caller: Caller,
    tenant: Option<Name>,
    follow: bool,
    since: u64,
}

impl EventCursor {
    fn shows(&self, event: &Event) -> bool {
        if self.tenant.is_some() && event.tenant != self.tenant {
            return false;
        }
        let state = self.agent.state();
        match &event.tenant {
            _ if self.caller.admin => true,
            Some(tenant) => {
                // Not what happened to another that had this name before.
                state.tenants.get(tenant).is_some_and(|tenant| {
                    event.seq > tenant.after_event && self.caller.role(tenant).is_some()
                })
            }
            None => false,
        }
    }

    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        loop {
            let events = match self.agent.events.read(&self.agent.store, self.since).await {
                Ok(events) => events,
                Err(error) => return Some(Err(io::Error::other(store_denial(&error)))),
            };
            if events.is_empty() {
                if !self.follow {
                    return None;
                }
                self.agent.events.after(self.since).await;
                continue;
            }
            let mut lines = Vec::new();
            for event in &events {
                self.since = event.seq;
                if self.shows(event) {
                    serde_json::to_writer(&mut lines, &**event).expect("an event has string keys only");
                    lines.push(b'\n');
                }
            }
            if !lines.is_empty() {
                return Some(Ok(lines.into()));
            }
        }
    }
}

/// What happened, one event a line.
#[utoipa::path(get, path = "/v1/events", params(EventsQuery), tag = "host",
    responses((status = 200, body = Event, content_type = "application/x-ndjson")))]
pub(super) async fn events(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Params(query): Params<EventsQuery>,
) -> Response {
    let EventsQuery { since, tenant, follow } = query;
    let cursor = EventCursor { agent, caller, tenant, follow, since };
    let lines = stream::unfold(cursor, |mut cursor| async move { Some((cursor.next().await?, cursor)) });
    text(Body::from_stream(lines), "application/x-ndjson")
}

fn text(body: Body, kind: &'static str) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Which log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogSource {
    /// What the VMM says.
    #[default]
    Vmm,
    /// What the guest says on its console.
    Console,
}

/// Parameters of a VM's logs.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// Which log.
    source: LogSource,
    /// Lines from its end; all that are kept, if it is missing.
    tail: Option<usize>,
    /// Whether to go on with what is said.
    follow: bool,
}

/// A VM's log or console, as text.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/vms/{vm}/logs", tag = "vms",
    params(("tenant" = Name, Path), ("vm" = Name, Path), LogsQuery),
    responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn logs(
    State(agent): State<Arc<Agent>>,
    Extension(permit): Extension<Permit>,
    At(key): Two,
    Params(query): Params<LogsQuery>,
) -> Result<Response, Denial> {
    let (console, path) = {
        let state = agent.state();
        let vm = state.vm(&key)?;
        (Arc::clone(&vm.live.console), agent.config.vm_dir(&vm.record.id).join("vmm.log"))
    };
    let host = |error: io::Error| Denial::host(format!("the log can't be read: {error}"));
    let body = match query.source {
        LogSource::Console => {
            let (bytes, live) = blocking(move || console.attach(SHOWN_MAX).map_err(host)).await?;
            let begin = VecDeque::from([last_lines(&bytes, query.tail)]);
            let live = query.follow.then_some(live);
            let said = stream::unfold((begin, live), |(mut begin, mut live)| async move {
                if let Some(bytes) = begin.pop_front() {
                    return Some((Ok::<_, Infallible>(Bytes::from(bytes)), (begin, live)));
                }
                let bytes = heard(live.as_mut()?).await?;
                Some((Ok(bytes), (begin, live)))
            });
            Body::from_stream(said.take_until(Box::pin(permit.revoked())))
        }
        LogSource::Vmm => {
            let read = {
                let path = path.clone();
                blocking(move || read_from(&path, 0, SHOWN_MAX).map_err(host)).await?
            };
            let (bytes, at) = read;
            let begin = VecDeque::from([last_lines(&bytes, query.tail)]);
            let follow = query.follow.then_some((path, at));
            let said = stream::unfold((begin, follow), |(mut begin, mut follow)| async move {
                if let Some(bytes) = begin.pop_front() {
                    return Some((Ok::<_, io::Error>(Bytes::from(bytes)), (begin, follow)));
                }
                let (path, at) = follow.as_mut()?;
                match grown(path.clone(), *at).await {
                    Ok((bytes, now)) => {
                        *at = now;
                        Some((Ok(bytes.into()), (begin, follow)))
                    }
                    Err(error) => Some((Err(error), (begin, None))),
                }
            });
            Body::from_stream(said.take_until(Box::pin(permit.revoked())))
        }
    };
    Ok(text(body, "text/plain; charset=utf-8"))
}

/// The last lines of what was said; all without a number.
fn last_lines(bytes: &[u8], lines: Option<usize>) -> Vec<u8> {
    let Some(lines) = lines else { return bytes.to_vec() };
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let ends: Vec<usize> =
        body.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    let begin = match lines {
        0 => bytes.len(),
        lines => ends.len().checked_sub(lines).map_or(0, |at| ends[at]),
    };
    bytes[begin..].to_vec()
}

fn read_from(path: &std::path::Path, at: u64, max: u64) -> io::Result<(Vec<u8>, u64)> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = match std::fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        file => file?,
    };
    let len = file.metadata()?.len();
    // A shorter one is another one.
    let at = if len < at { 0 } else { at }.max(len.saturating_sub(max));
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    let now = at + bytes.len() as u64;
    Ok((bytes, now))
}

async fn grown(path: PathBuf, at: u64) -> io::Result<(Vec<u8>, u64)> {
    loop {
        let file = path.clone();
        let (bytes, now) = tokio::task::spawn_blocking(move || read_from(&file, at, SHOWN_MAX))
            .await
            .map_err(io::Error::other)??;
        if !bytes.is_empty() {
            return Ok((bytes, now));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the guest says next; a reader that is too slow misses some. `None` at the end.
async fn heard(live: &mut Receiver<Arc<[u8]>>) -> Option<Bytes> {
    match live.recv().await {
        Ok(bytes) => Some(Bytes::copy_from_slice(&bytes)),
        Err(RecvError::Lagged(chunks)) => {
            Some(format!("\r\n[{chunks} pieces of output were missed]\r\n").into())
        }
        Err(RecvError::Closed) => None,
    }
}

/// Parameters of a VM's console.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ConsoleQuery {
    /// Whether what the client sends is the guest's input. One at a time does so.
    write: bool,
    /// How many bytes of what was said before are shown first.
    history: u64,
}

/// Whether these parameters of a console make the client its writer: read as [`console`] reads them, so that no other
/// spelling of them is. Those that can't be read are refused there.
pub(super) fn console_is_written(query: &str) -> bool {
    let uri = Uri::builder().path_and_query(format!("/?{query}")).build();
    let params = uri.ok().and_then(|uri| Query::<ConsoleQuery>::try_from_uri(&uri).ok());
    params.is_some_and(|Query(params)| params.write)
}

/// A VM's console, as raw bytes both ways after an upgrade to `yun-console`.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/vms/{vm}/console", tag = "vms",
    params(("tenant" = Name, Path), ("vm" = Name, Path), ConsoleQuery),
    responses((status = 101, description = "Raw bytes follow, both ways")))]
pub(super) async fn console(
    State(agent): State<Arc<Agent>>,
    Extension(place): Extension<Arc<Place>>,
    Extension(permit): Extension<Permit>,
    At(key): Two,
    Params(query): Params<ConsoleQuery>,
    mut request: Request,
) -> Result<Response, Denial> {
    let wanted = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if !wanted.is_some_and(|wanted| wanted.eq_ignore_ascii_case(PROTOCOL)) {
        let text = format!("the console needs the headers `Connection: Upgrade` and `Upgrade: {PROTOCOL}`");
        return Err(Denial::invalid(text));
    }
    let console = Arc::clone(&agent.state().vm(&key)?.live.console);
    let token = if query.write {
        Some(console.writer().ok_or_else(|| {
            Denial::new(DenialCode::InUse, "somebody else writes to this console")
                .hint("read along with write=false, or wait until they leave")
        })?)
    } else {
        None
    };
    let host = |error: io::Error| Denial::host(format!("the console can't be opened: {error}"));
    let input = token.is_some().then(|| console.input()).transpose().map_err(host)?;
    let reader = Arc::clone(&console);
    let history = query.history.min(SHOWN_MAX);
    let (before, live) = blocking(move || reader.attach(history).map_err(host)).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        tokio::select! {
            () = attached(upgrade, before, live, input) => {}
            () = permit.revoked() => {}
        }
        drop(token);
        // It was a connection to the end.
        drop(place);
    });
    let headers = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

async fn attached(
    upgrade: OnUpgrade,
    before: Vec<u8>,
    live: Receiver<Arc<[u8]>>,
    input: Option<pipe::Sender>,
) {
    let Ok(upgraded) = upgrade.await else { return };
    let (reads, writes) = tokio::io::split(TokioIo::new(upgraded));
    // Whichever ends first ends both.
    tokio::select! {
        () = show(writes, before, live) => {}
        () = listen(reads, input) => {}
    }
}

async fn show(mut client: WriteHalf<TokioIo<Upgraded>>, before: Vec<u8>, mut live: Receiver<Arc<[u8]>>) {
    let mut bytes = Bytes::from(before);
    loop {
        // A client that takes nothing is given up: its writer's place is others'.
        match tokio::time::timeout(STALL, client.write_all(&bytes)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
        match heard(&mut live).await {
            Some(more) => bytes = more,
            None => return,
        }
    }
}

async fn listen(mut client: ReadHalf<TokioIo<Upgraded>>, input: Option<pipe::Sender>) {
    let mut bytes = vec![0; 1024];
    while let Ok(len @ 1..) = client.read(&mut bytes).await {
        let Some(input) = &input else { continue };
        let mut left = &bytes[..len];
        while !left.is_empty() {
            if input.writable().await.is_err() {
                return;
            }
            match input.try_write(left) {
                Ok(len) => left = &left[len..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_from_the_end() {
        let text = b"one\ntwo\nthree\n";
        for (lines, expected) in [
            (None, "one\ntwo\nthree\n"),
            (Some(0), ""),
            (Some(1), "three\n"),
            (Some(2), "two\nthree\n"),
            (Some(9), "one\ntwo\nthree\n"),
        ] {
            assert_eq!(last_lines(text, lines), expected.as_bytes(), "{lines:?}");
        }
        assert_eq!(last_lines(b"one\ntwo", Some(1)), b"two");
        assert_eq!(last_lines(b"", Some(1)), b"");
    }
}
