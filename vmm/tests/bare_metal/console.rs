//! The serial port: output that nobody reads, output to a file, input.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::common::{PATIENCE, Setup, Vm, eventually, mode};
use super::{boot, kvm};

#[test]
fn a_flood_that_nobody_reads_blocks_no_vcpu_and_takes_no_memory() {
    if !kvm() {
        return;
    }
    let mut vm = Setup::new(&[]).with_output_ignored().start();
    boot(&vm, "do=flood");
    let dropped = || vm.metric("yun_uart_missed_write_count_total");
    eventually("a full pipe", || (dropped() > 0).then_some(()));
    let (before, resident) = (dropped(), vm.resident_kib());
    eventually("more output, dropped", || (dropped() > before + 50_000).then_some(()));
    let grown = vm.resident_kib().saturating_sub(resident);
    assert!(grown < 256, "grew by {grown} KiB");
    let asked = Instant::now();
    assert_eq!(vm.get("/")["state"], "Running");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    vm.patch("/vm", &json!({"state": "Paused"}));
    vm.patch("/vm", &json!({"state": "Resumed"}));
    // Nor does the end wait for the reader.
    vm.signal(nix::sys::signal::Signal::SIGTERM);
    vm.logs("told to end");
    vm.signal(nix::sys::signal::Signal::SIGTERM);
    vm.ends_with(3, "killed");
}

#[test]
fn output_goes_to_a_file_that_only_its_owner_may_read() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    let file = vm.path("serial");
    vm.put("/serial", &json!({ "serial_out_path": file }));
    boot(&vm, "do=hello");
    vm.ends_with(0, "poweroff");
    assert_eq!(fs::read_to_string(&file).unwrap(), "bare-metal guest\ndone\n");
    assert_eq!(mode(&file), 0o600);
    assert_eq!(vm.console(), "");
}

#[test]
fn output_to_a_fifo_waits_for_its_reader_and_is_then_complete() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    let fifo = vm.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // A pipe of one page: the guest prints more than it holds, and then nothing that would wake anybody.
    let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    vm.put("/serial", &json!({ "serial_out_path": fifo }));
    boot(&vm, "do=echo");
    vm.types(&b"0123456789abcdef".repeat(1024));
    eventually("all of it printed", || (vm.metric("yun_uart_write_count_total") >= 16_384).then_some(()));
    let (told, read) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut reader = reader;
        let mut bytes = Vec::<u8>::new();
        while bytes.len() < "bare-metal guest\n".len() + 16_384 {
            let mut chunk = [0; 4096];
            let n = std::io::Read::read(&mut reader, &mut chunk).unwrap();
            bytes.extend(&chunk[..n]);
        }
        told.send(bytes).unwrap();
    });
    let bytes = read.recv_timeout(PATIENCE).expect("the rest comes when there is room for it");
    assert!(bytes[17..] == b"0123456789abcdef".repeat(1024));
}

#[test]
fn input_reaches_the_guest_however_much_it_is() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    boot(&vm, "do=echo");
    vm.prints("bare-metal guest\n");
    vm.types(b"hello\n");
    vm.prints("hello\n");
    // More than its FIFO holds.
    let long = "0123456789abcdef".repeat(512) + ".\n";
    vm.types(long.as_bytes());
    vm.prints(&long);
}

#[test]
fn input_that_came_before_the_start_waits_for_the_guest() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    vm.types(b"early\n");
    // The VMM has seen it once it has answered something since.
    thread::sleep(Duration::from_millis(50));
    assert_eq!(vm.get("/")["state"], "Not started");
    boot(&vm, "do=echo");
    vm.prints("bare-metal guest\nearly\n");
}

#[test]
fn the_end_of_input_disturbs_nobody() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(&[]);
    boot(&vm, "do=spin");
    vm.prints("bare-metal guest\n");
    vm.hangs_up();
    let before = vm.ticks("yun-vmm");
    thread::sleep(Duration::from_millis(300));
    assert!(vm.ticks("yun-vmm") - before < 10, "the main thread spins");
    assert_eq!(vm.get("/")["state"], "Running");
}
