//! HTTP on the socket: connections, limits and deadlines.
//!
//! One thread serves all connections; each is a task of its own, so a slow or dead client holds nothing but its own
//! place among [`Limits::connections_max`]. Requests of one connection are answered strictly in order. What hyper
//! can't parse, and what exceeds a limit, is a *framing error*: it is answered with status 400 and an `error`, and the
//! connection ends, because nobody can tell where the next request would begin.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::body::{EventStream, ReplyBody};
use super::head::{HEAD_LEN_MAX, Replied, cut_off, error_page, framing_fault, respond, stays_open};
use super::link::{Deadlines, Exchange, Link, Phase};
use super::socket::ApiSocket;
use super::{ApiCounters, Asked, ContentType, Method, OPENAPI_DOCUMENT, Reply, route};
use crate::control::CommandSender;
use crate::events::EventRing;
use crate::metrics::Metrics;

/// Largest body of a request unless told otherwise, in bytes; as Firecracker's.
pub const BODY_LEN_MAX_DEFAULT: usize = 51_200;

/// How long a client that sent a malformed request is listened to, so that it gets to read why it was refused.
const LINGER: Duration = Duration::from_millis(500);
/// Stack of the thread; parsing JSON (128 levels deep at most) is what needs most of it.
const STACK_LEN: usize = 512 * 1024;

/// What a client may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest body of a request, in bytes.
    pub body_len_max: usize,
    /// Connections at the same time; one more is turned away, unless another has been idle for too long.
    pub connections_max: usize,
    /// Time for which a connection that waits for a request is left alone while others want its place.
    pub idle_timeout: Duration,
    /// Time from the first byte of a request to its last; if the first came along with the request before, from when its
    /// head is there.
    pub request_timeout: Duration,
    /// Time in which a client has to take something of an answer.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_len_max: BODY_LEN_MAX_DEFAULT,
            connections_max: 10,
            idle_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
        }
    }
}

/// What the API answers from.
#[derive(Clone)]
pub struct Services {
    /// The driver of the microVM.
    pub commands: CommandSender,
    /// What the API counts, shown among the metrics.
    pub counters: Arc<ApiCounters>,
    /// The metrics of the process.
    pub metrics: Arc<Metrics>,
    /// The events of the microVM.
    pub events: Arc<EventRing>,
    /// What a client may use up.
    pub limits: Limits,
    /// Users whose requests are answered; all that may connect, if empty.
    pub peer_uids: Arc<[u32]>,
}

/// The API's thread.
#[derive(Debug)]
pub struct ApiServer {
    thread: Option<thread::JoinHandle<()>>,
    stop: Option<oneshot::Sender<Duration>>,
}

impl ApiServer {
    /// Serves the API on `socket`, on a thread of its own. `first` runs on that thread before it listens to anybody
    /// (to confine it, for one).
    ///
    /// # Errors
    /// What the host says to a new thread, or to the runtime on it.
    pub fn start(
        socket: ApiSocket,
        services: Services,
        first: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            first();
            let (listener, file) = socket.into_parts();
            LocalSet::new().block_on(&runtime, async move {
                match UnixListener::from_std(listener) {
                    Ok(listener) => Server::new(services).run(listener, stopped).await,
                    Err(error) => log::error!("The API socket can't be listened on: {error}"),
                }
            });
            drop(file);
        };
        let thread = thread::Builder::new().name("yun_api".to_owned()).stack_size(STACK_LEN).spawn(serve)?;
        Ok(Self { thread: Some(thread), stop: Some(stop) })
    }

    /// Stops: no new connections; answers under way, and event streams that were closed, get `grace` to reach their
    /// clients. The socket is removed.
    pub fn stop(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(grace);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// Serves one connection that the caller accepted, on the caller's runtime, until its client or a malformed request ends it.
/// Of the limits, all but the number of connections hold: counting them, and stopping, is [`ApiServer`]'s.
pub async fn serve_connection(stream: UnixStream, services: Services) {
    Server::new(services).serve(stream).await;
}

/// A request that ended its connection; why is in the [`Exchange`].
#[derive(Debug, thiserror::Error)]
#[error("the connection ends")]
struct FramingError;

/// A request that is being answered; counted as long as this lives, however the answer ends.
struct Busy<'a>(&'a Server);

impl<'a> Busy<'a> {
    fn new(server: &'a Server) -> Self {
        server.busy.set(server.busy.get() + 1);
        Self(server)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
    }
}

struct Server {
    services: Services,
    connections: Cell<usize>,
    /// Those that have not ended.
    exchanges: RefCell<Vec<Rc<Exchange>>>,
    /// Requests that are being answered.
    busy: Cell<usize>,
    streams: Rc<Cell<usize>>,
}

impl Server {
    fn new(services: Services) -> Rc<Self> {
        Rc::new(Self {
            services,
            connections: Cell::new(0),
            exchanges: RefCell::default(),
            busy: Cell::new(0),
            streams: Rc::default(),
        })
    }

    async fn run(self: Rc<Self>, listener: UnixListener, mut stopped: oneshot::Receiver<Duration>) {
        loop {
            let accepted = poll_fn(|cx| match Pin::new(&mut stopped).poll(cx) {
                Poll::Ready(grace) => Poll::Ready(Err(grace.unwrap_or_default())),
                Poll::Pending => listener.poll_accept(cx).map(Ok),
            });
            match accepted.await {
                Ok(Ok((stream, _))) => {
                    if let Some(why) = self.stranger(&stream) {
                        self.turn_away(&stream, StatusCode::FORBIDDEN, &why);
                        continue;
                    }
                    if self.is_full() {
                        self.reap().await;
                    }
                    if self.is_full() && self.end_longest_idle() {
                        self.reap().await;
                    }
                    self.accept(stream);
                }
                Ok(Err(error)) => {
                    log::warn!("The API can't accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await; // out of descriptors: don't spin
                }
                Err(grace) => {
                    drop(listener);
                    let quiet = async {
                        while self.busy.get() > 0 || self.streams.get() > 0 {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    };
                    let _ = timeout(grace, quiet).await;
                    return;
                }
            }
        }
    }

    fn is_full(&self) -> bool {
        self.connections.get() >= self.services.limits.connections_max
    }

    /// Lets connections end whose clients are gone already. Under load, connections are accepted and answered for several
    /// rounds before the kernel is asked which others were closed: one client after another would be turned away for
    /// the places of their forerunners.
    async fn reap(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await; // asks the kernel
        tokio::task::yield_now().await; // those that were woken run before this
    }

    /// Ends the connection that has waited for a request the longest, if that is too long: whoever opens all the connections
    /// that there may be, and says nothing, keeps nobody out. Whether there was one.
    fn end_longest_idle(&self) -> bool {
        let exchanges = self.exchanges.borrow();
        let idle = exchanges.iter().filter_map(|exchange| Some((exchange.idle_since()?, exchange)));
        let longest = idle.min_by_key(|(since, _)| *since);
        let too_long = longest.filter(|(since, _)| since.elapsed() >= self.services.limits.idle_timeout);
        let Some((since, exchange)) = too_long else { return false };
        log::info!("The API's longest idle connection ({} ms) makes room.", since.elapsed().as_millis());
        exchange.hang_up();
        true
    }

    /// Why a client may not use this API, if it may not.
    fn stranger(&self, stream: &UnixStream) -> Option<String> {
        let allowed = &self.services.peer_uids;
        if allowed.is_empty() {
            return None;
        }
        // By the kernel's word, at the time of connect(2).
        match stream.peer_cred().map(|peer| peer.uid()) {
            Ok(uid) if allowed.contains(&uid) => None,
            Ok(uid) => Some(format!("User {uid} may not use this API")),
            Err(error) => Some(format!("Nobody knows who you are: {error}")),
        }
    }

    fn turn_away(&self, stream: &UnixStream, status: StatusCode, why: &str) {
        self.services.counters.server.connections_refused.inc();
        let _ = stream.try_write(&error_page(status, why)); // a fresh socket has room
    }

    fn accept(self: &Rc<Self>, stream: UnixStream) {
        if self.is_full() {
            return self.turn_away(&stream, StatusCode::SERVICE_UNAVAILABLE, "Too many open connections");
        }
        self.connections.set(self.connections.get() + 1);
        let server = self.clone();
        spawn_local(async move {
            server.clone().serve(stream).await;
            server.connections.set(server.connections.get() - 1);
        });
    }

    async fn serve(self: Rc<Self>, stream: UnixStream) {
        let exchange = Exchange::new(stream);
        self.exchanges.borrow_mut().push(exchange.clone());
        self.clone().serve_exchange(&exchange).await;
        self.exchanges.borrow_mut().retain(|other| !Rc::ptr_eq(other, &exchange));
    }

    async fn serve_exchange(self: Rc<Self>, exchange: &Rc<Exchange>) {
        let limits = self.services.limits;
        let deadlines = Deadlines { request: limits.request_timeout, stall: limits.stall_timeout };
        let link = Link::new(exchange.clone(), deadlines);
        let server = self.clone();
        let service = {
            let exchange = exchange.clone();
            service_fn(move |request| Box::pin(server.clone().answer(exchange.clone(), request)))
        };
        let mut connection = http1::Builder::new()
            .title_case_headers(true)
            .auto_date_header(false)
            .half_close(true)
            .max_buf_size(HEAD_LEN_MAX)
            .serve_connection(link, service);
        let result = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
        // To hyper a connection that fails before its request began ended well.
        let fault = exchange.fault.take().or_else(|| framing_fault(&result.err()?));
        let Some(fault) = fault else { return };
        self.services.counters.server.framing_errors.inc();
        log::warn!("A request to the API was malformed: {fault}");
        let text = format!("{fault}\nAll previous unanswered requests will be dropped.");
        let page = error_page(StatusCode::BAD_REQUEST, &text);
        let _ = timeout(LINGER, exchange.farewell(&page)).await;
    }

    async fn answer(
        self: Rc<Self>,
        exchange: Rc<Exchange>,
        request: Request<Incoming>,
    ) -> Result<Response<ReplyBody>, FramingError> {
        let busy = Busy::new(&self);
        let result = self.answer_inner(&exchange, request).await;
        drop(busy);
        exchange.phase.set(Phase::Sending);
        result
    }

    async fn answer_inner(
        &self,
        exchange: &Rc<Exchange>,
        request: Request<Incoming>,
    ) -> Result<Response<ReplyBody>, FramingError> {
        if exchange.phase.get() == Phase::Idle {
            // Its head came along with the request before.
            exchange.begin(self.services.limits.request_timeout);
        }
        let (head, body) = request.into_parts();
        let fault = |text: String| {
            exchange.fault.borrow_mut().get_or_insert(text);
            FramingError
        };
        let Some(method) = Method::parse(head.method.as_str()) else {
            return Err(fault("Invalid HTTP Method: Unsupported HTTP method.".to_owned()));
        };
        let body = self.receive(body).await.map_err(fault)?;
        exchange.phase.set(Phase::Answering);
        // Taken whatever is asked: they are of this request, not of the next.
        let received = exchange.received.take();
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        log::info!("The API server received a {} request on {target:?}.", method.name());
        let tally = self.services.counters.of(method, target);
        if let Some(tally) = tally {
            tally.count.inc();
        }
        let (reply, deprecated) = match route(method, target, &body) {
            Ok(routed) => {
                if routed.deprecated {
                    self.services.counters.server.deprecated_http_api_calls.inc();
                }
                (self.reply(exchange, routed.asked, received).await, routed.deprecated)
            }
            Err(error) => (Replied::Text(Reply::refused(&error.to_string())), false),
        };
        let refused = matches!(&reply, Replied::Text(reply) if !reply.status.is_success());
        if let Some(tally) = tally.filter(|_| refused) {
            tally.fails.inc();
        }
        let open = stays_open(&head, &reply);
        let mut response = respond(reply, deprecated, open);
        // Else hyper would add to what the head says of the connection.
        *response.version_mut() = head.version;
        Ok(response)
    }

    /// Takes in a body, as long as it keeps within the limit.
    async fn receive(&self, mut body: Incoming) -> Result<Vec<u8>, String> {
        let limit = self.services.limits.body_len_max;
        let too_long = |len: u64| {
            format!("Request payload with size {len} is larger than the limit of {limit} allowed by server.")
        };
        let announced = body.size_hint().lower();
        if announced > limit as u64 {
            return Err(too_long(announced));
        }
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match cut_off(&error) {
                true => "Invalid request: its body was cut off.".to_owned(),
                false => format!("Invalid request: its body could not be read: {error}."),
            })?;
            if let Some(data) = frame.data_ref() {
                let len = bytes.len() + data.len();
                if len > limit {
                    return Err(too_long(len as u64));
                }
                bytes.reserve_exact(len.max(usize::try_from(announced).unwrap_or(len)) - bytes.len());
                bytes.extend_from_slice(data);
            }
        }
        Ok(bytes)
    }

    async fn reply(&self, exchange: &Rc<Exchange>, asked: Asked, received: Vec<OwnedFd>) -> Replied {
        Replied::Text(match asked {
            Asked::Command(command) => {
                let answer = self.services.commands.ask(command, received).await;
                match &answer {
                    Ok(_) => log::info!("The request was executed successfully."),
                    Err(denial) => {
                        log::error!("Received Error. Status code: 400 Bad Request. Message: {denial}")
                    }
                }
                Reply::from(&answer)
            }
            Asked::Metrics => Reply::shows(ContentType::OpenMetrics, self.services.metrics.openmetrics()),
            Asked::OpenApi => Reply::shows(ContentType::Json, OPENAPI_DOCUMENT),
            Asked::Events { since } => {
                exchange.streams.set(true);
                let (events, streams) = (self.services.events.clone(), self.streams.clone());
                return Replied::Events(EventStream::new(events, since, exchange.clone(), streams));
            }
        })
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
