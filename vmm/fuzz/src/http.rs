//! A client of any bytes on a connection of the API's real server, deadlines and all; its clock jumps.
//!
//! An input begins with a byte: bit 7 says that the client ends its half of the connection at last, bits 2:0 how many cuts
//! there are; then a byte for each cut, the length of a piece. What follows is sent, piece by piece.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices_fuzz::Input;
use tokio::net::UnixStream;
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::timeout;
use vmm::api::{ApiCounters, Limits, OPENAPI_DOCUMENT, Services, serve_connection};
use vmm::control::{Envelope, channel};
use vmm::events::{EventKind, EventRing};
use vmm::metrics::Metrics;

use crate::microvm::MicroVm;

/// Largest body that is taken: little, so that larger ones are met.
const BODY_LEN_MAX: usize = 512;
/// Longer than the server waits for anything.
const QUIET: Duration = Duration::from_secs(11);
/// A request that is always answered.
const ASK: &[u8] = b"GET /version HTTP/1.1\r\n\r\n";
const VERSION: &[u8] = br#"{"firecracker_version":"1.17.0"}"#;

/// The server's surroundings: the driver answers while it is asked, on the same thread.
fn services(events: &Arc<EventRing>) -> Services {
    let vm = Mutex::new(MicroVm::default());
    let inbox: Arc<Mutex<Option<Receiver<Envelope>>>> = Arc::default();
    let asked = Arc::clone(&inbox);
    let (commands, received) = channel(move || {
        let inbox = asked.lock().expect("no panic goes on");
        for envelope in inbox.iter().flat_map(Receiver::try_iter) {
            let answer = vm.lock().expect("no panic goes on").take(envelope.command);
            envelope.reply.answer(answer);
        }
    });
    *inbox.lock().expect("no panic goes on") = Some(received);
    let metrics = Metrics::new();
    Services {
        commands,
        counters: ApiCounters::registered_with(&metrics),
        metrics,
        events: Arc::clone(events),
        limits: Limits { body_len_max: BODY_LEN_MAX, ..Limits::default() },
        peer_uids: Arc::new([]),
    }
}

/// Lets the server do what it can.
async fn pause() {
    for _ in 0..8 {
        yield_now().await;
    }
}

/// The client's end.
struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    ended: bool,
}

impl Client {
    async fn send(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Ok(()) = self.stream.writable().await else { return };
            match self.stream.try_write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // The server has ended the connection.
                Err(_) => return,
            }
        }
        pause().await;
    }

    /// Takes answers until there have been none for a while.
    async fn listen(&mut self) {
        while !self.ended && timeout(QUIET, self.stream.readable()).await.is_ok() {
            let mut bytes = [0; 4096];
            match self.stream.try_read(&mut bytes) {
                Ok(0) => self.ended = true,
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // A reset: something that was sent was not read.
                Err(_) => self.ended = true,
            }
        }
    }
}

/// One answer.
struct Answer<'a> {
    status: u16,
    body: Vec<u8>,
    closes: bool,
    rest: &'a [u8],
}

/// Splits off `len` bytes.
fn split(bytes: &[u8], len: usize) -> (&[u8], &[u8]) {
    bytes.split_at_checked(len).expect("an answer that was not cut off")
}

/// The body of a chunked answer, and what follows it.
fn chunked(mut rest: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut body = Vec::new();
    loop {
        let status = httparse::parse_chunk_size(rest).expect("a chunk size");
        let httparse::Status::Complete((head, len)) = status else { panic!("a stream that was not cut off") };
        let (chunk, after) = split(&rest[head..], usize::try_from(len).expect("little"));
        let (line_end, after) = split(after, 2);
        assert_eq!(line_end, b"\r\n");
        rest = after;
        if len == 0 {
            return (body, rest);
        }
        body.extend_from_slice(chunk);
    }
}

/// The first answer in `bytes`, well-formed. `ended`: the connection ended after them.
fn answer(bytes: &[u8], ended: bool) -> Answer<'_> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = parsed.parse(bytes) else {
        panic!("no head of an answer: {}", String::from_utf8_lossy(bytes));
    };
    let status = parsed.code.expect("a status");
    let header = |name: &str| {
        let mut values = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        let value = values.next().map(|header| std::str::from_utf8(header.value).expect("ASCII"));
        assert!(values.next().is_none(), "{name} twice");
        value
    };
    let closes = header("Connection") == Some("close");
    let rest = &bytes[head..];
    if status == 100 {
        return Answer { status, body: Vec::new(), closes, rest };
    }
    assert_eq!(header("Server"), Some("Firecracker API"));
    let content_type = header("Content-Type");
    let (body, rest) = match (header("Content-Length"), header("Transfer-Encoding")) {
        (Some(len), None) => {
            let (body, rest) = split(rest, len.parse().expect("a length"));
            (body.to_vec(), rest)
        }
        (None, Some("chunked")) => chunked(rest),
        (None, None) if status == 204 => (Vec::new(), rest),
        (None, None) => {
            assert!(ended && closes, "an answer that is as long as its connection, which goes on");
            (rest.to_vec(), &[][..])
        }
        lengths => panic!("two lengths: {lengths:?}"),
    };
    assert_eq!((status == 204, content_type.is_none()), (body.is_empty() && status != 200, status == 204));
    let json = |text: &[u8]| drop(serde_json::from_slice::<serde_json::Value>(text).expect("it says JSON"));
    match content_type {
        None => {}
        Some("application/json") if body == OPENAPI_DOCUMENT.as_bytes() => {}
        Some("application/json") => json(&body),
        Some("application/x-ndjson") => body.split_inclusive(|byte| *byte == b'\n').for_each(json),
        Some(other) => {
            assert!(other.starts_with("application/openmetrics-text") && body.ends_with(b"# EOF\n"))
        }
    }
    Answer { status, body, closes, rest }
}

/// All answers: only the last may say that the connection closes, and then it does. The last one's status and body.
fn answers(client: &Client) -> Option<(u16, Vec<u8>)> {
    let (mut rest, mut last) = (&client.received[..], None);
    while !rest.is_empty() {
        let answer = answer(rest, client.ended);
        assert!(matches!(answer.status, 100 | 200 | 204 | 400), "status {}", answer.status);
        if answer.closes {
            assert!(answer.rest.is_empty() && client.ended, "it says that the connection closes");
        }
        rest = answer.rest;
        last = Some((answer.status, answer.body));
    }
    last
}

async fn talk(stream: UnixStream, events: &EventRing, mut input: Input<'_>) {
    let mut client = Client { stream, received: Vec::new(), ended: false };
    let flags = input.byte();
    let cuts: Vec<usize> = (0..flags & 7).map(|_| usize::from(input.byte())).collect();
    for cut in cuts {
        client.send(input.slice(cut)).await;
    }
    client.send(input.0).await;
    // Streams end, so that other requests of their connections are answered.
    events.close();
    if flags & 0x80 != 0 {
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&client.stream),
            nix::sys::socket::Shutdown::Write,
        )
        .expect("a socket");
        client.listen().await;
        assert!(client.ended, "the client ended its half, and the server does not end its own");
        answers(&client);
        return;
    }
    client.listen().await;
    answers(&client);
    // A request that is still incomplete is completed by the first of these, and ends: by an answer, or with its
    // connection. The last one is on its own.
    for _ in 0..2 {
        client.received.clear();
        client.send(ASK).await;
        client.listen().await;
        let last = answers(&client);
        if client.ended {
            return;
        }
        if last == Some((200, VERSION.to_vec())) {
            return;
        }
    }
    panic!("a valid request was not answered");
}

/// Plays one input.
pub fn run(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .event_interval(1)
        .build()
        .expect("the host has descriptors");
    LocalSet::new().block_on(&runtime, async {
        let (theirs, ours) = UnixStream::pair().expect("the host has descriptors");
        let events = EventRing::new(8);
        events.push(EventKind::Started, None);
        let server = spawn_local(serve_connection(theirs, services(&events)));
        talk(ours, &events, Input(data)).await;
        timeout(QUIET, server).await.expect("a server without a client ends").expect("it does not panic");
    });
}
