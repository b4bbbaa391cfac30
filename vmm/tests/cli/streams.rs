//! What goes on.

use std::io::{BufRead, BufReader};

use hyper::body::Bytes;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::fake::{Fake, Reply};
use super::{asked, run, yun};

fn event(seq: u64) -> Bytes {
    let event = json!({"seq": seq, "at": "t", "kind": "vm.started", "tenant": "acme", "target": "web", "requestor": "uid:0"});
    Bytes::from(format!("{event}\n"))
}

fn stream(pieces: &[Bytes]) -> (UnboundedSender<Bytes>, Reply) {
    let (sender, receiver) = unbounded_channel();
    pieces.iter().for_each(|piece| sender.send(piece.clone()).unwrap());
    (sender, Reply::Stream(receiver))
}

#[test]
fn events_are_one_a_line_as_the_agent_sends_them() {
    let fake = Fake::new();
    fake.on("GET /v1/events?since=3&tenant=acme", |_| {
        let whole = [event(4), event(5)].concat();
        let (first, second) = whole.split_at(30);
        stream(&[Bytes::copy_from_slice(first), Bytes::copy_from_slice(second)]).1
    });
    let said = run(&fake, &["events", "--since", "3", "-t", "acme"]);
    assert_eq!(said.out, "4\tt\tvm.started\tacme/web\tuid:0\t-\n5\tt\tvm.started\tacme/web\tuid:0\t-\n");
    let said = run(&fake, &["events", "--since", "3", "-t", "acme", "--format", "json"]);
    assert_eq!(said.out.as_bytes(), [event(4), event(5)].concat());
}

#[test]
fn followed_events_go_on_where_they_were_after_the_agent_restarts() {
    let fake = Fake::new();
    fake.on("GET /v1/events?follow=true", |_| stream(&[event(1), event(2)]).1);
    let (goes_on, reply) = stream(&[event(3)]);
    let mut reply = Some(reply);
    fake.on("GET /v1/events?since=2&follow=true", move |_| reply.take().unwrap());
    let mut child = yun(&fake, &["events", "-f"]).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen: Vec<String> = lines.take(3).map(|line| line.unwrap()).collect();
    assert!(
        seen[0].starts_with("1\t") && seen[1].starts_with("2\t") && seen[2].starts_with("3\t"),
        "{seen:?}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    drop(goes_on);
}

#[test]
fn logs_are_followed_as_they_come() {
    let fake = Fake::new();
    let (sender, reply) = stream(&[Bytes::from_static(b"one\n")]);
    let mut reply = Some(reply);
    fake.on("GET /v1/tenants/acme/vms/web/logs", move |_| reply.take().unwrap());
    let mut child =
        yun(&fake, &["logs", "acme/web", "-f", "--tail", "5", "--source", "console"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "one");
    sender.send(Bytes::from_static(b"two\n")).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "two");
    drop(sender);
    assert!(lines.next().is_none());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    asked(&fake, "GET /v1/tenants/acme/vms/web/logs?source=console&tail=5&follow=true", 1);
}
