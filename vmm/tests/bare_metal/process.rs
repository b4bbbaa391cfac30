//! The process: signals, its socket, its command line, its configuration file, the images it holds.
#![allow(unsafe_code)] // limits of another process, and of a child before it runs anything

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::Pid;
use serde_json::json;

use super::common::{Captured, Guard, PATIENCE, Setup, Vm, eventually, http, mode, run, vmm, zeros};
use super::{boot, guest, kvm};

#[test]
fn a_guest_that_does_not_heed_the_power_button_is_ended_at_the_deadline() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&["--shutdown-timeout-ms", "400"]);
    boot(&vm, "do=spin");
    vm.prints("bare-metal guest\n");
    let told = Instant::now();
    vm.signal(Signal::SIGTERM);
    vm.logs("told to end by signal 15");
    assert_eq!(vm.get("/")["state"], "Running", "until then the API answers");
    vm.ends_with(3, "killed");
    assert!(told.elapsed() >= Duration::from_millis(400), "{:?}", told.elapsed());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    if !kvm() {
        return;
    }
    for (first, second) in [
        (Signal::SIGTERM, Signal::SIGTERM),
        (Signal::SIGINT, Signal::SIGTERM),
        (Signal::SIGTERM, Signal::SIGINT),
    ] {
        let mut vm = Vm::start(&["--shutdown-timeout-ms", "3600000"]);
        boot(&vm, "do=spin");
        vm.prints("bare-metal guest\n");
        vm.signal(first);
        vm.logs("told to end");
        vm.signal(second);
        let told = Instant::now();
        vm.ends_with(3, "killed");
        assert!(told.elapsed() < PATIENCE);
    }
}

#[test]
fn a_paused_guest_gets_its_chance_to_shut_down() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&["--shutdown-timeout-ms", "200"]);
    boot(&vm, "do=spin");
    vm.prints("bare-metal guest\n");
    vm.patch("/vm", &json!({"state": "Paused"}));
    vm.signal(Signal::SIGTERM);
    vm.ends_with(3, "killed");
    assert!(vm.events().iter().any(|e| e["event"] == "resumed"));
}

#[test]
fn a_signal_before_the_start_ends_it_with_0() {
    let mut vm = Vm::start(&[]);
    assert_eq!(mode(&vm.socket()), 0o600);
    vm.signal(Signal::SIGTERM);
    vm.ends_with(0, "never_started");
}

#[test]
fn a_stale_socket_is_reclaimed_and_a_live_one_refused() {
    let setup = Setup::new(&[]);
    drop(UnixListener::bind(setup.dir().join("api.sock")).unwrap());
    let stale = UnixStream::connect(setup.dir().join("api.sock"));
    assert_eq!(stale.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    // Not `start`, which would take the stale file for the new one.
    let mut vm = setup.start_over_stale();
    assert_eq!(vm.get("/")["state"], "Not started");
    let socket = vm.socket();
    let (status, said) = run(&["--api-sock", socket.to_str().unwrap()]);
    assert_eq!(status, 1);
    let text = format!("the API socket {} is in use: another process answers on it", socket.display());
    assert!(said.contains(&text), "{said}");
    assert_eq!(vm.get("/")["state"], "Not started");
    vm.signal(Signal::SIGTERM);
    vm.ends_with(0, "never_started");
}

#[test]
fn a_file_in_the_sockets_place_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("precious");
    fs::write(&path, "precious").unwrap();
    let (status, said) = run(&["--api-sock", path.to_str().unwrap()]);
    assert_eq!(status, 1);
    assert!(said.contains("there is a file that is not a socket"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn one_image_is_written_by_one_microvm_and_read_by_many() {
    let (first, second) = (Vm::start(&[]), Vm::start(&[]));
    let disk = zeros(&first.path("disk"), 4096);
    let body = |read_only: bool| {
        json!({"drive_id": "d", "path_on_host": disk, "is_root_device": false, "is_read_only": read_only})
            .to_string()
    };
    first.put_drive("d", &disk, &json!({}));
    for read_only in [false, true] {
        let refusal = second.refused("PUT", "/drives/d", &body(read_only));
        let start = "Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: \
                     the image is locked by another virtual machine or drive";
        assert!(refusal.starts_with(start), "{refusal}");
    }
    // Nor may one machine have it twice.
    let twice = json!({"drive_id": "e", "path_on_host": disk, "is_root_device": false}).to_string();
    assert!(first.refused("PUT", "/drives/e", &twice).contains("is locked by another"));
    first.put_drive("d", &disk, &json!({"is_read_only": true}));
    assert_eq!(second.ask("PUT", "/drives/d", &body(true)).status, 204);
    drop(first);
    second.put_drive("d", &zeros(&second.path("other"), 512), &json!({}));
}

#[test]
fn bad_arguments_end_it_with_153() {
    for args in [&["--nonsense"][..], &["--id", "a_b"], &["--no-api"], &["--level", "loud"], &["--api-sock"]]
    {
        let (status, said) = run(args);
        assert_eq!(status, 153, "{args:?}: {said}");
        assert!(said.starts_with("Arguments parsing error: "), "{args:?}: {said}");
    }
}

#[test]
fn help_and_version_and_description_end_it_with_0() {
    let (status, help) = run(&["--help"]);
    assert!(status == 0 && help.starts_with("yun-vmm: one process, one microVM"));
    let (status, version) = run(&["--version"]);
    assert!(status == 0 && version.starts_with("yun-vmm "), "{version}");
    let (status, description) = run(&["--openapi"]);
    let description: serde_json::Value = serde_json::from_str(&description).unwrap();
    assert!(status == 0 && description["openapi"].as_str().unwrap().starts_with("3.1"));
}

#[test]
fn a_bad_configuration_file_ends_it_with_152() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let path = file.to_str().unwrap();
    let (status, said) = run(&["--no-api", "--config-file", path]);
    assert_eq!(status, 152, "missing: {said}");
    let kernel = json!({ "kernel_image_path": guest() });
    for (what, text, part) in [
        ("empty", String::new(), "EOF while parsing"),
        ("no JSON", "boot-source".to_owned(), "expected value"),
        ("no drives", json!({ "boot-source": kernel }).to_string(), "missing field `drives`"),
        ("no kernel", json!({"boot-source": {"kernel_image_path": "/nowhere"}, "drives": []}).to_string(), "The kernel file cannot be opened"),
        (
            "no disk",
            json!({"boot-source": kernel, "drives": [{"drive_id": "d", "path_on_host": "/nowhere", "is_root_device": false}]}).to_string(),
            "No such file or directory (os error 2) /nowhere",
        ),
        (
            "too many vCPUs",
            json!({"boot-source": kernel, "drives": [], "machine-config": {"vcpu_count": 33, "mem_size_mib": 128}}).to_string(),
            "The number of vCPUs must be",
        ),
        ("a section that is not there", json!({"boot-source": kernel, "drives": [], "balloon": {}}).to_string(), "`balloon` is not supported"),
    ] {
        fs::write(&file, text).unwrap();
        let (status, said) = run(&["--no-api", "--config-file", path]);
        assert_eq!(status, 152, "{what}: {said}");
        assert!(said.contains(part), "{what}: {said}");
    }
}

#[test]
fn a_configuration_file_starts_the_guest_with_or_without_api() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let config = |words: &str| json!({"boot-source": {"kernel_image_path": guest(), "boot_args": words}, "drives": []});
    fs::write(&file, config("do=hello end=reboot").to_string()).unwrap();
    let (status, said) = run(&["--no-api", "--config-file", file.to_str().unwrap()]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("bare-metal guest\ndone\n") && said.contains("reason reboot"), "{said}");
    fs::write(&file, config("do=spin").to_string()).unwrap();
    let mut vm = Vm::start(&["--config-file", file.to_str().unwrap()]);
    vm.prints("bare-metal guest\n");
    assert_eq!(vm.get("/")["state"], "Running");
    assert_eq!(vm.events()[0]["event"], "started");
}

/// A VMM without an API whose guest reads and writes a disk, as `read_only` says; what is logged goes to standard output.
fn with_disk(dir: &Path, read_only: bool) -> Command {
    let file = dir.join("config.json");
    let disk = zeros(&dir.join("disk"), 4096);
    let drive =
        json!({"drive_id": "d", "path_on_host": disk, "is_root_device": false, "is_read_only": read_only});
    let source = json!({"kernel_image_path": guest(), "boot_args": "do=blk"});
    fs::write(&file, json!({"boot-source": source, "drives": [drive]}).to_string()).unwrap();
    let mut command = Command::new(vmm());
    command.args(["--no-api", "--config-file"]).arg(&file).stdin(Stdio::null());
    command
}

#[test]
fn every_thread_may_log_to_a_standard_output_that_is_a_socket() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    // It is the disk's thread that has something to say: the guest may not write.
    let mut child = Guard(with_disk(dir.path(), true).stdout(OwnedFd::from(theirs)).spawn().unwrap());
    let said = Captured::of(ours).whole();
    assert_eq!(child.0.wait().unwrap().code(), Some(0), "{said}");
    assert!(said.contains("d: request refused") && said.contains("reason reboot"), "{said}");
}

#[test]
fn a_guest_that_writes_beyond_the_largest_file_allowed_gets_an_error_and_goes_on() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = with_disk(dir.path(), false);
    // In the middle of the sector that the guest writes, and then at its start.
    for limit in [600, 512] {
        let set = move || Ok(setrlimit(Resource::RLIMIT_FSIZE, limit, limit)?);
        // SAFETY: a child may make that system call before it executes something.
        unsafe { command.pre_exec(set) };
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{}: {said}", output.status);
        assert!(said.contains("d: write at byte 512 failed: File too large"), "{said}");
    }
}

#[test]
fn a_process_that_gets_no_memory_aborts_also_if_its_environment_asks_for_backtraces() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let mut command = Command::new(vmm());
    command.arg("--api-sock").arg(&socket).env("RUST_BACKTRACE", "full").env("RUST_LIB_BACKTRACE", "1");
    let mut child = Guard(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let said = Captured::of(child.0.stdout.take().unwrap());
    // The socket is there before the threads are, and without memory none would come.
    eventually("an answer", || http::request(&socket, "GET", "/", "").ok());
    let none = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
    let pid = i32::try_from(child.0.id()).unwrap();
    for resource in [libc::RLIMIT_AS, libc::RLIMIT_DATA] {
        // SAFETY: the limit outlives the call, which writes none back.
        assert_eq!(unsafe { libc::prlimit(pid, resource, &raw const none, std::ptr::null_mut()) }, 0);
    }
    // More than what the heap has in reserve.
    let _connections: Vec<_> =
        (0..10).filter_map(|_| http::open(&socket, "PUT", "/drives/d", &"[".repeat(51_000)).ok()).collect();
    let status = child.0.wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}: {}", said.whole());
}

#[test]
fn a_refused_call_ends_the_process_also_if_nobody_reads_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let (_unread, theirs) = UnixStream::pair().unwrap();
    let filler = theirs.try_clone().unwrap();
    let mut command = Command::new(vmm());
    command.arg("--api-sock").arg(&socket).stdout(OwnedFd::from(theirs));
    let mut child = Guard(command.spawn().unwrap());
    eventually("the API's socket", || socket.exists().then_some(()));
    while send(filler.as_raw_fd(), &[b'.'; 4096], MsgFlags::MSG_DONTWAIT).is_ok() {}
    // What the kernel sends for one.
    kill(Pid::from_raw(i32::try_from(child.0.id()).unwrap()), Signal::SIGSYS).unwrap();
    let status = eventually("the end of the VMM", || child.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(148), "{status}");
}
