//! The socket device as Linux uses it: streams and records, both ways, in bulk, half closed, stalled and in a storm.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv, send, socket,
};
use serde_json::json;

use super::common::{Bus, Setup, Vm, eventually};
use super::{boot, host, linux, printed, sha256, succeeds};
use crate::over_both_transports;

over_both_transports!(linux:
    a_mebibyte_passes_each_way_both_ways_round_with_half_closed_ends,
    a_reader_that_stalls_holds_up_nobody_else_and_loses_nothing,
    records_pass_both_ways_with_their_bounds,
    of_2000_connections_1023_are_made_and_afterwards_all_is_well,
);

const MIB: usize = 1 << 20;

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// A VMM with a socket device that listens at `v` in its directory.
fn with_sockets(bus: Bus) -> (Vm, PathBuf) {
    let vm = Setup::new(bus.flags()).start();
    let path = vm.path("v");
    vm.put("/vsock", &json!({"guest_cid": 3, "uds_path": path}));
    (vm, path)
}

/// Calls `port` of the guest, where somebody listens or will soon.
pub fn call(path: &Path, port: u32) -> UnixStream {
    eventually("somebody in the guest to listen", || {
        let mut stream = UnixStream::connect(path).unwrap();
        // Or there are too many connections yet: it is turned away before it has said a word.
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).ok()?;
        let mut line = Vec::new();
        let mut byte = [0];
        // The end instead of a line: the guest refuses.
        while !line.ends_with(b"\n") {
            match stream.read(&mut byte) {
                Ok(1) => line.push(byte[0]),
                _ => return None,
            }
        }
        assert!(line.starts_with(b"OK 1073"), "{line:?}");
        Some(stream)
    })
}

/// Bytes that repeat nowhere near.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(len)
    .collect()
}

/// Sends all of `data` to an echo and reads it back; then both ends are done.
fn echoes(stream: UnixStream, data: &[u8]) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = stream;
    let got = thread::scope(|scope| {
        let got = scope.spawn(move || {
            let mut got = vec![0; data.len()];
            reader.read_exact(&mut got).unwrap();
            // The echo closes its end once ours is shut.
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
            got
        });
        writer.write_all(data).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
        got.join().unwrap()
    });
    assert!(got == data, "what came back is not what was sent");
}

fn a_mebibyte_passes_each_way_both_ways_round_with_half_closed_ends(bus: Bus) {
    let (mut vm, path) = with_sockets(bus);
    let listener = UnixListener::bind(beside(&path, "_5000")).unwrap();
    let (received, sent) = (vm.path("received"), vm.path("sent"));
    std::fs::write(&sent, noise(MIB)).unwrap();
    // Answers only once the guest has said that it sends no more.
    let server = thread::spawn({
        let (received, sent) = (received.clone(), sent.clone());
        move || {
            let mut stream = listener.accept().unwrap().0;
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            std::fs::write(received, bytes).unwrap();
            stream.write_all(&std::fs::read(sent).unwrap()).unwrap();
        }
    });
    let script = "cd /tmp; head -c 1048576 /dev/urandom >a; echo sent=$(sha256sum <a | cut -d' ' -f1)
        vsock connect 5000 <a >b; echo received=$(sha256sum <b | cut -d' ' -f1)
        if vsock connect 5001 </dev/null; then echo nobody listens there; exit 1; fi
        vsock echo 6000 -n 1; echo echo=over";
    boot(&vm, "yun.modules=vsock", script);
    server.join().unwrap();
    echoes(call(&path, 6000), &noise(MIB));
    succeeds(&mut vm);
    assert_eq!(printed(&vm, "sent"), sha256(&received));
    assert_eq!(printed(&vm, "received"), sha256(&sent));
    assert_eq!(printed(&vm, "echo"), "over");
    assert!(!path.exists() && !beside(&path, "_seqpacket").exists(), "the sockets' files are left");
}

fn a_reader_that_stalls_holds_up_nobody_else_and_loses_nothing(bus: Bus) {
    let (mut vm, path) = with_sockets(bus);
    let script = "vsock echo 6000 -n 1 & vsock echo 6001 -n 1; echo other=done; wait";
    boot(&vm, "yun.modules=vsock", script);
    // More than all buffers on the way there and back hold.
    let data = noise(4 * MIB);
    let mut stalled = call(&path, 6000);
    let mut writer = stalled.try_clone().unwrap();
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            writer.write_all(&data).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        eventually("the echo to begin", || {
            (vm.metric("yun_vsock_rx_bytes_count_total") > 400_000).then_some(())
        });
        echoes(call(&path, 6001), &noise(MIB));
        vm.prints("other=done");
        assert!(!writing.is_finished(), "nothing held the writer up");
        let mut back = Vec::new();
        stalled.read_to_end(&mut back).unwrap();
        assert!(back == data, "{} bytes came back, or others", back.len());
    });
    succeeds(&mut vm);
}

fn record_socket() -> OwnedFd {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

fn receive(fd: &OwnedFd) -> Vec<u8> {
    let mut record = vec![0; 1 << 17];
    let len = recv(fd.as_raw_fd(), &mut record, MsgFlags::empty()).unwrap();
    record.truncate(len);
    record
}

fn records_pass_both_ways_with_their_bounds(bus: Bus) {
    let (mut vm, path) = with_sockets(bus);
    boot(&vm, "yun.modules=vsock", "vsock echo 6000 -r -n 1; vsock connect 5000 -r </init; echo over");
    let address = UnixAddr::new(&beside(&path, "_seqpacket")).unwrap();
    let fd = eventually("somebody in the guest to listen", || {
        let fd = record_socket();
        connect(fd.as_raw_fd(), &address).unwrap();
        send(fd.as_raw_fd(), b"CONNECT 6000", MsgFlags::empty()).unwrap();
        receive(&fd).starts_with(b"OK ").then_some(fd)
    });
    let listener = record_socket();
    bind(listener.as_raw_fd(), &UnixAddr::new(&beside(&path, "_5000")).unwrap()).unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    for len in [1, 2, 4052, 4096, 5000, 65_000, 65_536, 7] {
        let record = noise(len);
        assert_eq!(send(fd.as_raw_fd(), &record, MsgFlags::empty()), Ok(len));
        assert!(receive(&fd) == record, "a record of {len} bytes came back otherwise");
    }
    drop(fd);
    // Each read of the guest's is a record: its whole file, for it is small.
    let init = std::fs::read(super::common::checkout().join("guest-images/init")).unwrap();
    let caller = rustix::net::accept(&listener).unwrap();
    assert!(receive(&caller) == init);
    assert!(receive(&caller).is_empty());
    drop(caller);
    succeeds(&mut vm);
    assert!(vm.console().contains("over"));
}

fn of_2000_connections_1023_are_made_and_afterwards_all_is_well(bus: Bus) {
    let (mut vm, path) = with_sockets(bus);
    // They wait in its backlog: nobody takes them up.
    let storm = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(storm.as_raw_fd(), &UnixAddr::new(&beside(&path, "_5000")).unwrap()).unwrap();
    host("echo 4096 >/proc/sys/net/core/somaxconn");
    listen(&storm, Backlog::new(4096).unwrap()).unwrap();
    boot(&vm, "yun.modules=vsock", "vsock storm 5000 2000; vsock echo 6000 -n 1");
    vm.prints("refused=");
    echoes(call(&path, 6000), b"still here");
    succeeds(&mut vm);
    assert_eq!((printed(&vm, "made").as_str(), printed(&vm, "refused").as_str()), ("1023", "977"));
}
