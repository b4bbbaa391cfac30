//! Consoles, logs and events, also over a death of the agent.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use super::super::client;
use super::super::common::{Captured, eventually};
use super::super::ready;
use super::super::rig::{Host, spec, vm_path};

fn attach(host: &Host, query: &str) -> std::io::Result<BufReader<UnixStream>> {
    client::console(&host.socket(), &format!("{}/console?{query}", vm_path("t", "vm")))
}

/// Reads until what came ends with `text`; all of it.
fn reads(reader: &mut impl Read, text: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(text.as_bytes()) {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&bytes)));
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_console_has_history_one_writer_and_many_readers_and_goes_on_after_the_agents_death() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=echo"));
    host.prints("vm", "bare-metal guest\n");
    let mut writer = attach(&host, "write=true&history=1000").unwrap();
    let mut readers = [attach(&host, "").unwrap(), attach(&host, "history=6").unwrap()];
    assert_eq!(reads(&mut writer, "guest\n"), "bare-metal guest\n");
    writer.get_mut().write_all(b"hello\n").unwrap();
    assert_eq!(reads(&mut writer, "hello\n"), "hello\n");
    assert_eq!(reads(&mut readers[0], "hello\n"), "hello\n");
    assert_eq!(reads(&mut readers[1], "hello\n"), "guest\nhello\n");
    // What a reader sends is nobody's input.
    readers[0].get_mut().write_all(b"not this\n").unwrap();
    let second = attach(&host, "write=true").unwrap_err().to_string();
    assert!(second.starts_with("409"), "{second}");
    writer.get_mut().write_all(b"this\n").unwrap();
    assert_eq!(reads(&mut readers[0], "this\n"), "this\n");
    // With its writer gone another may write.
    drop(writer);
    let mut writer = eventually("the writer's place", || attach(&host, "write=true").ok());
    host.kill9();
    assert_eq!(writer.read(&mut [0; 8]).unwrap_or(0), 0, "an agent that is dead shows nothing");
    host.start();
    let mut writer = attach(&host, "write=true&history=100000").unwrap();
    assert_eq!(reads(&mut writer, "this\n"), "bare-metal guest\nhello\nthis\n");
    writer.get_mut().write_all(b"again\n").unwrap();
    assert_eq!(reads(&mut writer, "again\n"), "again\n");
}

#[test]
fn what_a_guest_prints_while_there_is_no_agent_is_kept() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=echo"));
    host.prints("vm", "bare-metal guest\n");
    let id = host.vm("vm")["id"].as_str().unwrap().to_owned();
    host.kill9();
    let input = host.state_dir().join("vms").join(id).join("console.in");
    std::fs::OpenOptions::new().write(true).open(input).unwrap().write_all(b"alone\n").unwrap();
    host.start();
    host.prints("vm", "bare-metal guest\nalone\n");
}

#[test]
fn a_console_without_its_upgrade_is_refused() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    let path = format!("{}/console", vm_path("t", "vm"));
    let (status, code, text) = host.refused("GET", &path, &Value::Null);
    assert_eq!((status, code.as_str()), (400, "invalid"));
    assert!(text.contains("yun-console"), "{text}");
}

#[test]
fn logs_have_a_tail_and_are_followed_for_guest_and_vmm() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=echo"));
    host.prints("vm", "bare-metal guest\n");
    let logs = format!("{}/logs", vm_path("t", "vm"));
    let follow = |source: &str| {
        Captured::of(client::follow(&host.socket(), &format!("{logs}?source={source}&follow=true&tail=1")))
    };
    let (guest, vmm) = (follow("console"), follow("vmm"));
    // A writer that leaves at once has written nevertheless.
    attach(&host, "write=true").unwrap().get_mut().write_all(b"one\ntwo\n").unwrap();
    host.prints("vm", "one\ntwo\n");
    eventually("its words", || guest.text().contains("two").then_some(()));
    let tail = host.ask("GET", &format!("{logs}?source=console&tail=1"), &Value::Null);
    assert_eq!(tail.text(), "two\n");
    host.act("vm", "stop");
    eventually("the VMM's words", || (vmm.text().lines().count() > 1).then_some(()));
    assert!(host.ask("GET", &logs, &Value::Null).text().contains(host.vm("vm")["id"].as_str().unwrap()));
}

/// The events of a stream so far.
fn events(stream: &Captured) -> Vec<Value> {
    let text = stream.text();
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn events_are_resumed_by_their_cursor_over_a_death_of_the_agent_with_none_missing() {
    if !ready() {
        return;
    }
    let host = Host::new();
    let stream = Captured::of(client::follow(&host.socket(), "/v1/events?follow=true"));
    host.run("vm", &spec("do=spin"));
    eventually("the start", || events(&stream).iter().any(|e| e["kind"] == "vm.started").then_some(()));
    host.kill9();
    stream.whole();
    let mut seen = events(&stream);
    host.start();
    host.act("vm", "kill");
    let since = seen.last().unwrap()["seq"].as_u64().unwrap();
    let stream =
        Captured::of(client::follow(&host.socket(), &format!("/v1/events?follow=true&since={since}")));
    eventually("the end", || events(&stream).iter().any(|e| e["kind"] == "vm.ended").then_some(()));
    seen.extend(events(&stream));
    let numbers: Vec<u64> = seen.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let kinds: Vec<&str> = seen.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    for kind in ["agent.started", "image.imported", "tenant.created", "vm.created", "vm.started", "vm.ended"]
    {
        assert!(kinds.contains(&kind), "no {kind}: {kinds:?}");
    }
    let created = seen.iter().find(|event| event["kind"] == "vm.created").unwrap();
    assert_eq!(
        (&created["requestor"], &created["tenant"], &created["target"]),
        (&json!("uid:0"), &json!("t"), &json!("vm"))
    );
    let of_nobody = host.ask("GET", "/v1/events?tenant=other", &Value::Null);
    assert_eq!(of_nobody.text(), "");
}
