//! A full disk, a damaged store, a newer one, and two agents.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use vmm::agent::store::{Batch, Store, Table, try_here};

use super::common::eventually;
use super::order::{audit_is_whole, events_are_whole, nothing_is_left_over, settles, usage_adds_up};
use super::ready;
use super::rig::{Host, spec, spec_with, vm_path};

/// A small disk over a server's state, for as long as this lives. In the namespace of this process: the agent's VMMs,
/// their janitors and this test all see it.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn over(dir: &Path, mib: u32) -> Self {
        fs::create_dir_all(dir).unwrap();
        let options = format!("size={mib}m,mode=0755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "yun-tests"]).arg(dir).status();
        assert!(mounted.unwrap().success());
        Self(dir.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Takes all room but a few bytes.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    let block = vec![1; 1 << 16];
    while file.write_all(&block).is_ok() {}
    while file.write_all(&block[..512]).is_ok() {}
}

#[test]
fn on_a_full_disk_changes_are_refused_whole_and_the_agent_goes_on_when_there_is_room_again() {
    if !ready() {
        return;
    }
    let host = Host::bare(&[]);
    host.mounts(SmallDisk::over(&host.state_dir(), 48));
    host.start();
    host.furnish();
    host.run("vm", &spec("do=spin"));
    let pid = host.vm_pid("vm");
    let full = host.state_dir().join("filler");
    fill(&full);
    // The store's file has room of its own, until that is used up too.
    let tenant = |n: u32| {
        let access: Vec<Value> = (0..64).map(|gid| json!({ "gid": gid, "role": "read" })).collect();
        host.ask("PUT", &format!("/v1/tenants/n{n}"), &json!({ "access": access }))
    };
    let made = (0..1000).find(|n| tenant(*n).status != 201).expect("a refusal");
    // Each is refused for the room it needs; none is half done.
    let requests: [(&str, &str, Value); 3] = [
        ("PUT", "/v1/tenants/t/vms/new", json!({ "spec": spec("do=spin") })),
        ("PUT", "/v1/tenants/t/volumes/new", json!({ "size_mib": 8, "preallocate": true })),
        ("POST", "/v1/tenants/t/vms/vm/actions", json!({ "action": "pause" })),
    ];
    for _ in 0..3 {
        let reply = tenant(made);
        assert_eq!(reply.refusal().0, "no_space", "{}", reply.text());
        for (method, path, body) in &requests {
            let reply = host.ask(method, path, body);
            assert_eq!(reply.status, 507, "{method} {path}: {}", reply.text());
            assert_eq!(reply.refusal().0, "no_space", "{method} {path}");
        }
    }
    fs::remove_file(full).unwrap();
    let names = |path: &str| host.get(path).as_array().unwrap().len();
    assert_eq!((names("/v1/vms"), names("/v1/tenants/t/volumes")), (1, 0));
    // The last one may have been made, with only the word of it in the audit log missing; it said so.
    let extra = names("/v1/tenants") - 1 - made as usize;
    assert!(extra <= 1, "{extra}");
    let vm = host.vm("vm");
    assert_eq!(
        (&vm["status"]["pid"], &vm["status"]["state"], &vm["generation"]),
        (&json!(pid), &json!("running"), &json!(1))
    );
    // Without a restart.
    for (method, path, body) in &requests {
        let reply = host.ask(method, path, body);
        assert!(matches!(reply.status, 200..=202), "{method} {path}: {}", reply.text());
        if reply.status == 202 {
            assert_eq!(host.over(reply.json()["id"].as_str().unwrap())["state"], "succeeded");
        }
    }
    settles(&host);
    assert_eq!(host.vm("vm")["status"]["pid"], pid);
    nothing_is_left_over(&host);
    events_are_whole(&host);
    audit_is_whole(&host);
    host.terminate();
    usage_adds_up(&host);
}

#[test]
fn an_image_that_does_not_fit_is_refused_for_that_and_leaves_nothing() {
    if !ready() {
        return;
    }
    let host = Host::bare(&[]);
    host.mounts(SmallDisk::over(&host.state_dir(), 24));
    host.start();
    host.furnish();
    let rootfs = host.dir().join("rootfs");
    fs::write(&rootfs, vec![1; 32 << 20]).unwrap();
    let body = json!({ "name": "big", "kernel": super::guest(), "rootfs": rootfs });
    let view = host.over(&host.begin("POST", "/v1/images", &body));
    assert_eq!((&view["state"], &view["error"]["code"]), (&json!("failed"), &json!("no_space")), "{view}");
    assert_eq!(host.get("/v1/images").as_array().unwrap().len(), 1);
    nothing_is_left_over(&host);
}

/// Starts an agent that must not start: what it says.
fn refused(host: &Host) -> String {
    let output = host.command().stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_store_cut_off_at_any_kilobyte_is_refused_or_whole_and_never_changed_and_vms_go_on() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    let pid = host.vm_pid("vm");
    host.kill9();
    let path = host.state_dir().join("yund.redb");
    let whole = fs::read(&path).unwrap();
    let (kilobytes, mut refusals) = (whole.len() >> 10, 0);
    // An agent's start costs a good part of a second: a fraction of them here, the others in the store's own tests.
    for kilobyte in (0..kilobytes).step_by((kilobytes / 24).max(1)) {
        let cut = &whole[..kilobyte << 10];
        fs::write(&path, cut).unwrap();
        host.launch(host.command());
        let status = eventually("a decision", || match host.attempt("GET", "/v1/whoami", &Value::Null) {
            Ok(_) => Some(None),
            Err(_) => host.has_ended().map(Some),
        });
        match status {
            // What was cut off was not needed.
            None => {
                assert_eq!(host.vm_pid("vm"), pid, "{kilobyte}");
                host.kill9();
            }
            Some(status) => {
                assert_eq!(status.code(), Some(1), "{kilobyte}");
                refusals += 1;
                assert!(fs::read(&path).unwrap() == cut, "{kilobyte}: the file was changed");
            }
        }
        assert!(host.processes().contains(&pid));
    }
    assert!(refusals > 0);
    let said = host.log();
    assert!(said.contains("is damaged") && said.contains("VMs that run go on running"), "{said}");
    fs::write(&path, &whole).unwrap();
    host.start();
    assert_eq!(host.vm_pid("vm"), pid);
    settles(&host);
}

#[test]
fn a_store_of_a_newer_agent_is_refused_unchanged() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    let pid = host.vm_pid("vm");
    host.terminate();
    let path = host.state_dir().join("yund.redb");
    let ours = fs::read(&path).unwrap();
    {
        let (store, _) = Store::open(&path, &try_here).unwrap();
        let mut batch = Batch::new();
        batch.put(Table::Meta, "format", &99);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(store.commit(batch)).unwrap();
    }
    host.store_is_closed();
    let newer = refused(&host);
    assert!(newer.contains("has format 99, written by a newer agent"), "{newer}");
    let bytes = fs::read(&path).unwrap();
    refused(&host);
    assert!(fs::read(&path).unwrap() == bytes, "the file was changed");
    assert!(host.processes().contains(&pid));
    fs::write(&path, ours).unwrap();
    host.start();
    assert_eq!(host.vm_pid("vm"), pid);
}

#[test]
fn a_second_agent_on_the_same_store_is_refused_and_the_first_unharmed() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    let before = host.vm("vm");
    let said = refused(&host);
    assert!(said.contains("is in use by another agent"), "{said}");
    assert_eq!(host.vm("vm")["status"], before["status"]);
    host.act("vm", "pause");
}

#[test]
fn a_second_agent_on_the_same_socket_is_refused_and_the_first_unharmed() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_yund"));
    command.arg("--socket").arg(host.socket()).arg("--state-dir").arg(host.dir().join("other"));
    command.arg("--vmm").arg(super::vmm()).arg("--jailer").arg(super::jailer()).arg("--no-network");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is in use: another agent answers on it"), "{said}");
    host.act("vm", "pause");
    // A socket that a dead agent left is no obstacle.
    host.kill9();
    assert!(host.socket().exists());
    host.start();
    assert_eq!(host.vm("vm")["status"]["state"], "paused");
    host.put(&vm_path("t", "two"), &json!({ "spec": spec_with("do=spin", &json!({ "power": "stopped" })) }));
}

#[test]
fn a_broken_audit_log_stops_the_agent_but_no_vm_until_it_is_put_aside() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.run("vm", &spec("do=spin"));
    let pid = host.vm_pid("vm");
    let put_aside = || {
        let mut command = host.command();
        let command = command.arg("--set-aside-audit").stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), format!("{out}{err}"))
    };
    let (status, said) = put_aside();
    assert!(status == Some(1) && said.contains("another process writes to this audit log"), "{said}");
    host.kill9();
    assert_eq!(put_aside(), (Some(0), "the audit log is whole: nothing was put aside\n".to_owned()));

    let path = host.state_dir().join("audit.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let edited = whole.replacen("/v1/tenants/t", "/v1/tenants/u", 1);
    assert_ne!(edited, whole);
    fs::write(&path, &edited).unwrap();
    let said = refused(&host);
    assert!(said.contains("audit.jsonl, line ") && said.contains("--set-aside-audit"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), edited, "it is evidence");

    let aside = host.state_dir().join("audit.jsonl.broken-1");
    assert_eq!(put_aside(), (Some(0), format!("put aside: {}\n", aside.display())));
    assert_eq!(fs::read_to_string(&aside).unwrap(), edited);
    host.start();
    assert_eq!(host.vm_pid("vm"), pid);
    let log = fs::read_to_string(&path).unwrap();
    assert!(log.lines().take(2).any(|line| line.contains("SET-ASIDE")), "{log}");
    audit_is_whole(&host);
    nothing_is_left_over(&host);
}
