//! Tests of `server`, over a real socket, with a driver thread that answers from a table.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream as Client;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;
use crate::control::{Command, Denial, Outcome, channel};
use crate::events::EventKind;
use crate::spec::{VmInfo, VmStatus};

struct Rig {
    server: Option<ApiServer>,
    path: PathBuf,
    events: Arc<EventRing>,
    counters: Arc<ApiCounters>,
    commands: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

const TIGHT: Limits = Limits {
    body_len_max: BODY_LEN_MAX_DEFAULT,
    connections_max: 10,
    idle_timeout: Duration::from_secs(60),
    request_timeout: Duration::from_millis(300),
    stall_timeout: Duration::from_millis(300),
};

impl Rig {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self::for_peers(limits, Vec::new())
    }

    fn for_peers(limits: Limits, peer_uids: Vec<u32>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let (sender, received) = channel(|| ());
        let commands = Arc::new(AtomicUsize::new(0));
        let counter = commands.clone();
        thread::spawn(move || {
            for envelope in received {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                envelope.reply.answer(match envelope.command {
                    Command::GetInfo => Ok(Outcome::Info(VmInfo::new(number.to_string(), VmStatus::Running))),
                    Command::Start => Err(Denial::AfterStart),
                    Command::SendCtrlAltDel => continue, // dropped: gone
                    _ => Ok(Outcome::Done),
                });
            }
        });
        let (events, metrics) = (EventRing::new(8), Metrics::new());
        let counters = ApiCounters::registered_with(&metrics);
        let services = Services {
            commands: sender,
            counters: counters.clone(),
            metrics,
            events: events.clone(),
            limits,
            peer_uids: peer_uids.into(),
        };
        let server = ApiServer::start(ApiSocket::bind(&path, 0o600).unwrap(), services, || ()).unwrap();
        Self { server: Some(server), path, events, counters, commands, _dir: dir }
    }

    fn connect(&self) -> Client {
        let client = Client::connect(&self.path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client
    }

    /// Sends bytes and reads one answer.
    fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.connect();
        let _ = client.write_all(request.as_ref()); // one that is turned away at once has its answer, too
        answer(&mut BufReader::new(client))
    }

    /// Sends bytes, ends the sending, and reads until the server ends the connection.
    fn ask_to_the_end(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.connect();
        client.write_all(request.as_ref()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        to_the_end(client)
    }
}

fn to_the_end(mut client: Client) -> String {
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    text
}

/// One answer, by its Content-Length.
fn answer(client: &mut BufReader<Client>) -> String {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        assert!(client.read_line(&mut text).unwrap() > 0, "the connection ended: {text:?}");
    }
    let len = text
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    client.read_exact(&mut body).unwrap();
    text + std::str::from_utf8(&body).unwrap()
}

fn put(path: &str, body: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The page of a framing error; its body must be JSON.
fn framing_error(text: &str) -> String {
    let body = format!("{{ \"error\": \"{text}\\nAll previous unanswered requests will be dropped.\" }}");
    serde_json::from_str::<serde_json::Value>(&body).unwrap();
    format!(
        "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn the_three_kinds_of_answer_are_firecrackers_byte_for_byte() {
    let rig = Rig::new();
    assert_eq!(
        rig.ask("GET / HTTP/1.1\r\n\r\n"),
        "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
         Content-Length: 76\r\n\r\n{\"id\":\"0\",\"state\":\"Running\",\"vmm_version\":\"1.17.0\",\"app_name\":\"Firecracker\"}"
    );
    assert_eq!(
        rig.ask(put("/entropy", "{}")),
        "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"
    );
    let body = r#"{"fault_message":"The requested operation is not supported after starting the microVM."}"#;
    assert_eq!(
        rig.ask(put("/actions", r#"{"action_type":"InstanceStart"}"#)),
        format!(
            "HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    );
}

#[test]
fn a_deprecated_field_is_answered_with_a_header_in_third_place() {
    let rig = Rig::new();
    assert_eq!(
        rig.ask(put("/machine-config", r#"{"vcpu_count":1,"mem_size_mib":1,"cpu_template":"None"}"#)),
        "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nDeprecation: true\r\n\r\n"
    );
}

#[test]
fn a_driver_that_does_not_answer_is_gone_not_silent() {
    let rig = Rig::new();
    let answer = rig.ask(put("/actions", r#"{"action_type":"SendCtrlAltDel"}"#));
    assert!(answer.ends_with(r#"{"fault_message":"The microVM did not answer: it is gone."}"#), "{answer}");
}

#[test]
fn a_body_of_exactly_the_limit_is_read_and_one_byte_more_is_refused_at_the_end_of_the_head() {
    let rig = Rig::new();
    let fits = format!(r#"{{"metrics_path":"{}"}}"#, "x".repeat(BODY_LEN_MAX_DEFAULT - 19));
    assert_eq!(fits.len(), 51_200);
    assert!(rig.ask(put("/metrics", &fits)).starts_with("HTTP/1.1 204 "));
    let expected =
        framing_error("Request payload with size 51201 is larger than the limit of 51200 allowed by server.");
    // Not a byte of the body was sent yet.
    let mut client = rig.connect();
    client.write_all(b"PUT /mmds/config HTTP/1.1\r\nContent-Length: 51201\r\n\r\n").unwrap();
    assert_eq!(to_the_end(client), expected);
    // A client that sends everything before it reads gets to read it, too.
    let mut client = rig.connect();
    client.write_all(put("/metrics", &format!("{fits} ")).as_bytes()).unwrap();
    assert_eq!(to_the_end(client), expected);
}

#[test]
fn a_chunked_body_is_read_and_held_to_the_same_limit() {
    let rig = Rig::with(Limits { body_len_max: 64, ..Limits::default() });
    let head = "PUT /entropy HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(rig.ask(format!("{head}1\r\n{{\r\n1\r\n}}\r\n0\r\n\r\n")).starts_with("HTTP/1.1 204 "));
    let answer = rig.ask_to_the_end(format!("{head}41\r\n{}\r\n0\r\n\r\n", " ".repeat(65)));
    assert_eq!(
        answer,
        framing_error("Request payload with size 65 is larger than the limit of 64 allowed by server.")
    );
}

#[test]
fn what_is_no_request_is_answered_with_valid_json_and_ends_the_connection() {
    let rig = Rig::new();
    for (bytes, text) in [
        ("POST / HTTP/1.1\r\n\r\n", "Invalid HTTP Method: Unsupported HTTP method."),
        ("HEAD / HTTP/1.1\r\n\r\n", "Invalid HTTP Method: Unsupported HTTP method."),
        ("get / HTTP/1.1\r\n\r\n", "Invalid HTTP Method: Unsupported HTTP method."),
        ("G@T / HTTP/1.1\r\n\r\n", "Invalid HTTP Method: Unsupported HTTP method."),
        ("GET / HTTP/2.0\r\n\r\n", "Invalid HTTP Version: Unsupported HTTP version."),
        ("GET / SMTP\r\n\r\n", "Invalid HTTP Version: Unsupported HTTP version."),
        ("GET /\u{7f} HTTP/1.1\r\n\r\n", "Invalid URI: invalid URI."),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", "Invalid header. Reason: invalid HTTP header parsed."),
        (
            "PUT /vm HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            "Invalid header. Reason: invalid content-length parsed.",
        ),
        ("PUT /entropy HTTP/1.1\r\nContent-Length: 9\r\n\r\n{}", "Invalid request: its body was cut off."),
        ("GET / HT", "Invalid request."),
    ] {
        assert_eq!(rig.ask_to_the_end(bytes), framing_error(text), "{bytes:?}");
    }
    let endless = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(HEAD_LEN_MAX));
    assert_eq!(
        rig.ask_to_the_end(endless),
        framing_error("Invalid header. Reason: the request's head is larger than 16384 bytes.")
    );
    assert!(rig.ask("GET /version HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 204 "), "it still answers others");
    assert_eq!(rig.counters.server.framing_errors.get(), 12);
}

#[test]
fn a_client_that_sends_nothing_or_goes_away_in_the_middle_harms_nobody() {
    let rig = Rig::new();
    assert_eq!(rig.ask_to_the_end(""), "");
    for _ in 0..50 {
        let mut client = rig.connect();
        let _ = client.write_all(b"PUT /entropy HTTP/1.1\r\nContent-Length: 9\r\n\r\n{");
    }
    let begin = Instant::now();
    while !rig.ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 ") {
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let rig = Rig::new();
    let mut client = rig.connect();
    let requests: String = (0..50).map(|_| "GET / HTTP/1.1\r\n\r\n").collect();
    client.write_all((requests + "GET /nope HTTP/1.1\r\n\r\nBAD\r\n\r\n").as_bytes()).unwrap();
    let mut client = BufReader::new(client);
    for number in 0..50 {
        assert!(answer(&mut client).contains(&format!(r#"{{"id":"{number}","#)));
    }
    assert!(
        answer(&mut client).ends_with(r#"{"fault_message":"Invalid request method and/or path: GET nope."}"#)
    );
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, framing_error("Invalid HTTP Method: Unsupported HTTP method."));
}

#[test]
fn the_eleventh_connection_is_turned_away_and_a_place_that_becomes_free_is_given_again() {
    let rig = Rig::with(Limits { idle_timeout: Duration::from_secs(60), ..Limits::default() });
    let mut clients: Vec<_> = (0..10).map(|_| BufReader::new(rig.connect())).collect();
    for client in &mut clients {
        client.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        answer(client);
    }
    assert_eq!(
        to_the_end(rig.connect()),
        "HTTP/1.1 503 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: 40\r\n\r\n{ \"error\": \"Too many open connections\" }"
    );
    assert_eq!(rig.counters.server.connections_refused.get(), 1);
    clients.pop();
    let begin = Instant::now();
    loop {
        let mut client = rig.connect();
        let _ = client.write_all(b"GET / HTTP/1.1\r\n\r\n");
        if answer(&mut BufReader::new(client)).starts_with("HTTP/1.1 200 ") {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn whoever_opens_every_connection_and_idles_keeps_nobody_out() {
    let rig = Rig::with(Limits { idle_timeout: Duration::ZERO, ..Limits::default() });
    let mut clients: Vec<_> = (0..10).map(|_| BufReader::new(rig.connect())).collect();
    for client in clients.iter_mut().rev() {
        client.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        answer(client);
    }
    // The last of them was answered first, so it has been idle the longest; then the one before.
    for _ in 0..2 {
        let mut owner = BufReader::new(rig.connect());
        owner.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(answer(&mut owner).starts_with("HTTP/1.1 200"));
        assert_eq!(to_the_end(clients.pop().unwrap().into_inner()), "");
        clients.insert(0, owner);
    }
    for client in &mut clients {
        client.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(answer(client).starts_with("HTTP/1.1 200"));
    }
    assert_eq!(rig.counters.server.connections_refused.get(), 0);
}

#[test]
fn a_connection_with_something_under_way_makes_room_for_nobody() {
    let rig = Rig::with(Limits { idle_timeout: Duration::ZERO, connections_max: 2, ..Limits::default() });
    let stream = stream(&rig, "/events");
    let mut slow = BufReader::new(rig.connect());
    slow.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    answer(&mut slow);
    slow.get_mut().write_all(b"GET / HT").unwrap();
    let said = rig.ask("GET / HTTP/1.1\r\n\r\n");
    assert!(said.starts_with("HTTP/1.1 503 "), "{said}");
    slow.get_mut().write_all(b"TP/1.1\r\n\r\n").unwrap();
    assert!(answer(&mut slow).starts_with("HTTP/1.1 200"));
    drop(stream);
}

#[test]
fn clients_that_come_after_others_have_gone_are_never_turned_away() {
    let rig = Rig::new();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let said = rig.ask("GET / HTTP/1.1\r\n\r\n");
                    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
                }
            });
        }
    });
}

#[test]
fn a_request_that_does_not_arrive_in_time_is_dropped_and_an_idle_connection_is_not() {
    let rig = Rig::with(TIGHT);
    let mut idle = BufReader::new(rig.connect());
    idle.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    answer(&mut idle);
    for part in ["GET / HT", "PUT /entropy HTTP/1.1\r\nContent-Length: 2\r\n\r\n{"] {
        let mut slow = rig.connect();
        slow.write_all(part.as_bytes()).unwrap();
        assert!(
            rig.ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "),
            "others are answered meanwhile"
        );
        assert_eq!(to_the_end(slow), framing_error("The request did not arrive within 300 ms."));
    }
    idle.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(answer(&mut idle).starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_body_whose_head_came_with_the_request_before_has_a_deadline_too() {
    let rig = Rig::with(TIGHT);
    let mut slow = rig.connect();
    slow.write_all(b"GET / HTTP/1.1\r\n\r\nPUT /entropy HTTP/1.1\r\nContent-Length: 2\r\n\r\n{").unwrap();
    let mut slow = BufReader::new(slow);
    assert!(answer(&mut slow).starts_with("HTTP/1.1 200 "));
    let mut rest = String::new();
    slow.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, framing_error("The request did not arrive within 300 ms."));
}

#[test]
fn a_client_that_stops_reading_is_dropped_and_holds_up_nobody() {
    let rig = Rig::with(TIGHT);
    let mut deaf = rig.connect();
    deaf.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let requests = "GET /openapi.json HTTP/1.1\r\n\r\n".repeat(64) + &"GET / HTTP/1.1\r\n\r\n".repeat(10_000);
    let begin = Instant::now();
    // It ends with an error, since the server ends the connection.
    while deaf.write_all(requests.as_bytes()).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
    assert!(rig.ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_client_that_expects_it_is_told_to_continue() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.write_all(b"PUT /entropy HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n").unwrap();
    let mut client = BufReader::new(client);
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 100 "), "{line}");
    client.read_line(&mut line).unwrap();
    client.get_mut().write_all(b"{}").unwrap();
    assert!(answer(&mut client).starts_with("HTTP/1.1 204 "));
    // A body that is too large is refused instead.
    let refused = rig.ask("PUT /entropy HTTP/1.1\r\nContent-Length: 99999\r\nExpect: 100-continue\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 400 "));
}

/// Reads one chunk of a chunked body.
fn chunk(client: &mut BufReader<Client>) -> String {
    let mut len = String::new();
    client.read_line(&mut len).unwrap();
    let mut data = vec![0; usize::from_str_radix(len.trim(), 16).unwrap() + 2];
    client.read_exact(&mut data).unwrap();
    String::from_utf8(data).unwrap().trim_end().to_owned()
}

fn stream(rig: &Rig, target: &str) -> BufReader<Client> {
    let mut client = rig.connect();
    client.write_all(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        client.read_line(&mut head).unwrap();
    }
    assert_eq!(
        head,
        "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
         Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    client
}

#[test]
fn a_stream_over_http_1_0_is_as_long_as_its_connection_and_says_so() {
    let rig = Rig::new();
    rig.events.push(EventKind::Started, None);
    rig.events.close();
    let answer = rig.ask_to_the_end("GET /events HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(
        head,
        "HTTP/1.0 200 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Type: application/x-ndjson"
    );
    assert!(body.starts_with(r#"{"seq":1,"#) && body.ends_with("}\n"), "{body}");
}

#[test]
fn a_stream_gives_past_events_first_then_each_as_it_comes_and_ends_with_the_server() {
    let mut rig = Rig::new();
    rig.events.push(EventKind::Started, None);
    rig.events.push(EventKind::Paused, None);
    let mut all = stream(&rig, "/events");
    let past = chunk(&mut all);
    assert_eq!(past.lines().count(), 2);
    assert!(past.starts_with(r#"{"seq":1,"timestamp":"#));
    let mut recent = stream(&rig, "/events?since=1");
    assert!(chunk(&mut recent).starts_with(r#"{"seq":2,"#));
    rig.events.push(EventKind::Shutdown, Some("power off"));
    assert!(chunk(&mut all).ends_with(r#""event":"shutdown","reason":"power off"}"#));
    assert!(chunk(&mut recent).contains(r#""seq":3,"#));
    rig.events.close();
    rig.server.take().unwrap().stop(Duration::from_secs(5));
    for mut client in [all, recent] {
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "0\r\n\r\n");
    }
    assert!(!rig.path.exists());
}

#[test]
fn a_stream_whose_client_went_away_gives_its_place_back() {
    let rig = Rig::new();
    for _ in 0..3 {
        let streams: Vec<_> = (0..8).map(|_| stream(&rig, "/events")).collect();
        drop(streams);
        rig.events.push(EventKind::Paused, None);
        let begin = Instant::now();
        while rig.counters.server.connections_refused.get() > 0 || !free(&rig, 10) {
            assert!(begin.elapsed() < Duration::from_secs(5));
        }
    }
}

/// Waits until it is so.
fn becomes(probe: impl Fn() -> bool) {
    let begin = Instant::now();
    while !probe() {
        assert!(begin.elapsed() < Duration::from_secs(5));
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_stream_whose_client_went_away_leaves_nothing_that_waits_for_the_next_event() {
    let rig = Rig::new();
    for _ in 0..3 {
        let client = stream(&rig, "/events");
        becomes(|| rig.events.waiting() == 1);
        drop(client);
        becomes(|| rig.events.waiting() == 0);
    }
}

#[test]
fn a_stream_whose_client_said_more_and_went_away_gives_its_place_back() {
    let rig = Rig::new();
    for _ in 0..10 {
        let mut client = stream(&rig, "/events");
        becomes(|| rig.events.waiting() > 0);
        client.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        thread::sleep(Duration::from_millis(20)); // so that it is looked at before the end comes
    }
    becomes(|| free(&rig, 10));
}

#[test]
fn a_request_behind_a_stream_is_answered_when_that_has_ended() {
    let rig = Rig::new();
    let mut client = stream(&rig, "/events");
    becomes(|| rig.events.waiting() > 0);
    client.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    thread::sleep(Duration::from_millis(20));
    rig.events.close();
    let mut line = String::new();
    while line != "0\r\n" {
        line.clear();
        assert!(client.read_line(&mut line).unwrap() > 0, "the connection ended");
    }
    client.read_line(&mut line).unwrap();
    assert!(answer(&mut client).starts_with("HTTP/1.1 200 "));
}

/// Whether so many connections can be had at once.
fn free(rig: &Rig, count: usize) -> bool {
    let mut clients: Vec<_> = (0..count).map(|_| BufReader::new(rig.connect())).collect();
    let free = clients.iter_mut().all(|client| {
        let _ = client.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n");
        answer(client).starts_with("HTTP/1.1 200 ")
    });
    drop(clients);
    // So many refusals are not what the test is about.
    let refused = rig.counters.server.connections_refused.get();
    rig.counters.server.connections_refused.add(0u64.wrapping_sub(refused));
    thread::sleep(Duration::from_millis(20));
    free
}

#[test]
fn a_stream_that_is_not_read_is_dropped_when_the_events_have_moved_on() {
    let rig = Rig::with(TIGHT);
    let deaf = stream(&rig, "/events");
    let long = "x".repeat(100_000);
    for _ in 0..100 {
        rig.events.push(EventKind::DeviceError, Some(&long));
        thread::sleep(Duration::from_millis(2));
    }
    assert!(rig.ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
    thread::sleep(TIGHT.stall_timeout * 2);
    let mut deaf = deaf.into_inner();
    let mut bytes = Vec::new();
    let _ = deaf.read_to_end(&mut bytes); // it ends
    assert!(bytes.len() < 100 * long.len());
}

#[test]
fn metrics_and_the_description_are_answered_without_the_driver() {
    let rig = Rig::new();
    let metrics = rig.ask("GET /metrics HTTP/1.1\r\n\r\n");
    assert!(
        metrics.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n")
    );
    assert!(metrics.ends_with("\n# EOF\n"));
    let description = rig.ask("GET /openapi.json HTTP/1.1\r\n\r\n");
    assert!(description.ends_with(OPENAPI_DOCUMENT));
    assert_eq!(rig.commands.load(Ordering::SeqCst), 0);
}

#[test]
fn requests_are_counted_and_so_are_those_that_were_refused() {
    let rig = Rig::new();
    rig.ask(put("/drives/a-b", "{}"));
    rig.ask(put("/entropy", "{}"));
    let tally = |target| rig.counters.of(Method::Put, target).unwrap();
    assert_eq!((tally("/drives").count.get(), tally("/drives").fails.get()), (1, 1));
    assert_eq!((tally("/entropy").count.get(), tally("/entropy").fails.get()), (1, 0));
}

#[test]
fn a_client_that_asks_for_it_has_its_connection_ended_and_is_told_so() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.write_all(b"GET /version HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let answer = to_the_end(client);
    assert_eq!(answer, "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: close\r\n\r\n");
}

#[test]
fn a_client_that_has_said_all_it_has_to_say_still_gets_its_answer() {
    let rig = Rig::new();
    for _ in 0..100 {
        assert!(rig.ask_to_the_end("GET /version HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 204 "));
    }
}

#[test]
fn http_1_0_is_answered() {
    let rig = Rig::new();
    let answer = rig.ask_to_the_end("GET /version HTTP/1.0\r\n\r\n");
    assert_eq!(answer, "HTTP/1.0 204 \r\nServer: Firecracker API\r\nConnection: close\r\n\r\n");
    let mut client = BufReader::new(rig.connect());
    for _ in 0..2 {
        client.get_mut().write_all(b"GET /version HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap();
        assert!(super::tests::answer(&mut client).contains("Connection: keep-alive\r\n"));
    }
}

#[test]
fn random_bytes_are_answered_with_json_or_not_at_all() {
    use proptest::prelude::*;
    let rig = Rig::with(TIGHT);
    let near_misses = "(GET|PUT|PATCH|[A-Z]{1,4}) /[a-z/?-]{0,8} HTTP/1\\.[01]\r\n(Content-Length: [0-9]{0,2}\r\n)?\r\n.{0,9}";
    let bytes =
        prop_oneof![prop::collection::vec(any::<u8>(), 0..200), near_misses.prop_map(String::into_bytes)];
    proptest!(ProptestConfig::with_cases(200), |(bytes in bytes)| {
        let text = rig.ask_to_the_end(&bytes);
        for body in text.split("\r\n\r\n").filter(|part| part.starts_with('{')) {
            let value = body.split("HTTP/1.").next().unwrap();
            prop_assert!(serde_json::from_str::<serde_json::Value>(value).is_ok(), "{:?}", value);
        }
        prop_assert!(!text.contains("Bad Request"));
    });
}

#[test]
fn only_the_users_that_may_are_answered_and_the_others_are_told() {
    let me = nix::unistd::getuid().as_raw();
    let request = "GET / HTTP/1.1\r\n\r\n";
    let rig = Rig::for_peers(Limits::default(), vec![me + 1, me]);
    assert!(rig.ask(request).starts_with("HTTP/1.1 200 "));
    let rig = Rig::for_peers(Limits::default(), vec![me + 1]);
    let answer = rig.ask(request);
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.ends_with(&format!(r#"{{ "error": "User {me} may not use this API" }}"#)), "{answer}");
    assert_eq!(rig.commands.load(Ordering::SeqCst), 0);
    assert_eq!(rig.counters.server.connections_refused.get(), 1);
}
