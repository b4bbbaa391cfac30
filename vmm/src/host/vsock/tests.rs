//! The host's side over real sockets. What is written to a Unix socket is there when the call returns: nothing waits here.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use devices::mem::VolatileSlice;
use devices::virtio::vsock::Received;
use nix::sys::socket::{Backlog, MsgFlags, bind, listen, recv, send};

use super::*;

const ROOM: usize = 8;

struct Rig {
    dir: tempfile::TempDir,
    host: UnixHost,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Arc::new(VsockSockets::bind(&dir.path().join("v")).unwrap());
        Self { host: UnixHost::new(sockets, 1 << 20).unwrap(), dir }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        beside(&self.dir.path().join("v"), suffix)
    }

    fn poll(&mut self) -> Vec<HostEvent> {
        let mut events = Vec::new();
        assert!(!self.host.poll(ROOM, &mut events));
        events
    }

    /// A stream of the guest's, watched under slot 5, and its end on the host.
    fn watched(&mut self) -> (Box<dyn Peer>, UnixStream) {
        let listener = UnixListener::bind(self.path("_52")).unwrap();
        let mut peer = self.host.connect(Kind::Stream, 52).unwrap();
        peer.watch(5).unwrap();
        (peer, listener.accept().unwrap().0)
    }

    /// The one call that came in.
    fn call(&mut self) -> (Box<dyn Peer>, Kind, u32) {
        let mut events = self.poll();
        assert_eq!(events.len(), 1);
        match events.remove(0) {
            HostEvent::Call { peer, kind, port } => (peer, kind, port),
            HostEvent::Ready { .. } => panic!("not a call"),
        }
    }

    /// (slot, readable, writable, hung up) of each.
    fn ready(&mut self) -> Vec<(u16, bool, bool, bool)> {
        let each = self.poll().into_iter().map(|event| match event {
            HostEvent::Ready { slot, readable, writable, hung_up, .. } => (slot, readable, writable, hung_up),
            HostEvent::Call { .. } => panic!("a call"),
        });
        each.collect()
    }
}

fn records(path: &Path, server: bool) -> OwnedFd {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let address = UnixAddr::new(path).unwrap();
    if server {
        bind(fd.as_raw_fd(), &address).unwrap();
        listen(&fd, Backlog::new(8).unwrap()).unwrap();
    } else {
        connect(fd.as_raw_fd(), &address).unwrap();
    }
    fd
}

fn received(peer: &mut dyn Peer, room: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; room];
    let n = peer.recv(&[VolatileSlice::from(&mut bytes[..])])?.bytes;
    bytes.truncate(n);
    Ok(bytes)
}

fn sent(peer: &mut dyn Peer, bytes: &[u8]) -> io::Result<usize> {
    peer.send(&[VolatileSlice::from(&mut bytes.to_vec()[..])])
}

#[test]
fn a_stream_that_names_a_port_is_a_call_and_what_follows_is_not_lost() {
    let mut rig = Rig::new();
    let mut client = UnixStream::connect(rig.path("")).unwrap();
    client.write_all(b"CONN").unwrap();
    assert!(rig.poll().is_empty());
    client.write_all(b"ECT 52\nand more").unwrap();
    let (mut peer, kind, port) = rig.call();
    assert_eq!((kind, port), (Kind::Stream, 52));
    peer.watch(3).unwrap();
    assert_eq!(rig.ready(), [(3, true, false, false)], "of what is there already");
    peer.accepted(1 << 30).unwrap();
    assert_eq!(received(&mut *peer, 100).unwrap(), b"and more");
    assert_eq!(received(&mut *peer, 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let mut answer = [0; 14];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"OK 1073741824\n");
}

#[test]
fn records_are_called_at_a_path_of_their_own() {
    let mut rig = Rig::new();
    let client = records(&rig.path("_seqpacket"), false);
    let say = |bytes: &[u8]| send(client.as_raw_fd(), bytes, MsgFlags::empty()).unwrap();
    say(b"CONNECT 7");
    say(b"first");
    say(b"second");
    let (mut peer, kind, port) = rig.call();
    assert_eq!((kind, port), (Kind::SeqPacket, 7));
    peer.accepted(9).unwrap();
    let mut into = [0; 100];
    assert_eq!(recv(client.as_raw_fd(), &mut into, MsgFlags::empty()), Ok(5));
    assert_eq!(&into[..5], b"OK 9\n");
    for expected in [&b"first"[..], b"second"] {
        let mut record = Vec::new();
        assert_eq!(peer.recv_record(&mut record).unwrap(), expected.len());
        assert_eq!(record, expected);
    }
    assert_eq!(peer.recv_record(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    say(&vec![1; devices::virtio::vsock::RECORD_BYTES_MAX + 1]);
    assert_eq!(peer.recv_record(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    drop(client);
}

#[test]
fn a_caller_that_says_something_else_or_nothing_is_turned_away() {
    let mut rig = Rig::new();
    for line in ["GET / HTTP/1.1\r\n", "CONNECT x\n", "CONNECT 52 and much more that never ends", "\n", ""] {
        let mut client = UnixStream::connect(rig.path("")).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(rig.poll().is_empty());
        // Reset if it had more to say than was read.
        assert!(
            client.read(&mut [0]).map_or_else(|e| e.kind() == io::ErrorKind::ConnectionReset, |n| n == 0)
        );
    }
    assert!(rig.host.callers.is_empty());
}

#[test]
fn callers_beyond_the_room_there_is_are_turned_away_and_others_wait() {
    let mut rig = Rig::new();
    let mut clients: Vec<_> = (0..ROOM + 1).map(|_| UnixStream::connect(rig.path("")).unwrap()).collect();
    assert!(rig.poll().is_empty());
    assert_eq!(clients.pop().unwrap().read(&mut [0]).unwrap(), 0);
    assert_eq!(rig.host.callers.len(), ROOM);
    rig.host.reset();
    assert!(rig.host.callers.is_empty());
    for mut client in clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn connections_leave_open_files_for_the_rest_of_the_process() {
    let mut rig = Rig::new();
    let _listener = UnixListener::bind(rig.path("_52")).unwrap();
    let sockets = Arc::clone(&rig.host.sockets);
    rig.host = UnixHost::new(sockets, DESCRIPTORS_RESERVED + 2).unwrap();
    let peers: Vec<_> = (0..2).map(|_| rig.host.connect(Kind::Stream, 52).unwrap()).collect();
    let error = rig.host.connect(Kind::Stream, 52).map(drop).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    let mut caller = UnixStream::connect(rig.path("")).unwrap();
    assert!(rig.poll().is_empty());
    assert_eq!(caller.read(&mut [0]).unwrap(), 0);
    drop(peers);
    assert!(rig.host.connect(Kind::Stream, 52).is_ok());
}

#[test]
fn the_guest_reaches_who_listens_for_its_type_and_nobody_else() {
    let mut rig = Rig::new();
    let kind_of = |result: io::Result<Box<dyn Peer>>| result.map(drop).unwrap_err().raw_os_error();
    assert_eq!(kind_of(rig.host.connect(Kind::Stream, 52)), Some(libc::ENOENT));
    let listener = UnixListener::bind(rig.path("_52")).unwrap();
    let mut peer = rig.host.connect(Kind::Stream, 52).unwrap();
    assert_eq!(kind_of(rig.host.connect(Kind::SeqPacket, 52)), Some(libc::EPROTOTYPE));
    assert_eq!(sent(&mut *peer, b"hello").unwrap(), 5);
    let mut stream = listener.accept().unwrap().0;
    peer.shut(true);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"hello");
    let _records = records(&rig.path("_53"), true);
    assert!(rig.host.connect(Kind::SeqPacket, 53).is_ok());
    assert_eq!(kind_of(rig.host.connect(Kind::Stream, 53)), Some(libc::EPROTOTYPE));
    drop(listener);
    assert_eq!(kind_of(rig.host.connect(Kind::Stream, 52)), Some(libc::ECONNREFUSED));
}

#[test]
fn room_is_told_of_when_it_is_wanted_and_the_end_when_it_comes() {
    let mut rig = Rig::new();
    let (mut peer, mut stream) = rig.watched();
    assert!(rig.ready().is_empty(), "nothing to receive, and nobody asked for room");
    let chunk = [7; 4096];
    let mut total = 0;
    let error = loop {
        match sent(&mut *peer, &chunk) {
            Ok(n) => total += n,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    peer.want_room(true).unwrap();
    assert!(rig.ready().is_empty());
    let mut bytes = vec![0; total];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(rig.ready(), [(5, false, true, false)]);
    peer.want_room(false).unwrap();
    rig.ready();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rig.ready(), [(5, true, false, false)]);
    assert!(received(&mut *peer, 1).unwrap().is_empty());
    drop(stream);
    assert_eq!(rig.ready(), [(5, true, true, true)]);
    assert_eq!(sent(&mut *peer, &chunk).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

/// What the host says of the peer under slot 5: `pieces`.
fn in_pieces(rig: &mut Rig) -> bool {
    match rig.poll().as_slice() {
        [HostEvent::Ready { slot: 5, readable: true, pieces, .. }] => *pieces,
        _ => panic!("not what is ready"),
    }
}

#[test]
fn a_receive_knows_whether_it_got_all_and_where_it_can_not_know_says_so() {
    let mut rig = Rig::new();
    let (mut peer, mut stream) = rig.watched();
    let mut receive = |room: usize| {
        let mut bytes = vec![0; room];
        let Received { bytes, all } = peer.recv(&[VolatileSlice::from(&mut bytes[..])]).unwrap();
        (bytes, all)
    };
    stream.write_all(b"seven..").unwrap();
    assert!(!in_pieces(&mut rig));
    assert_eq!((receive(7), rig.poll().len()), ((7, false), 0), "there may be more");
    stream.write_all(b"one").unwrap();
    stream.write_all(b"two").unwrap();
    assert!(!in_pieces(&mut rig));
    assert_eq!(receive(100), (6, true));
    // Descriptors divide a stream.
    let passed = [std::io::stdin().as_raw_fd()];
    let control = [nix::sys::socket::ControlMessage::ScmRights(&passed)];
    let parts = [std::io::IoSlice::new(b"with a file")];
    nix::sys::socket::sendmsg::<()>(stream.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).unwrap();
    stream.write_all(b"and more").unwrap();
    assert!(!in_pieces(&mut rig));
    assert_eq!((receive(100), receive(100)), ((11, false), (8, true)));
    // So do urgent bytes, if this kernel has them.
    stream.write_all(b"before").unwrap();
    if send(stream.as_raw_fd(), b"!", MsgFlags::MSG_OOB).is_ok() {
        stream.write_all(b"after").unwrap();
        assert!(in_pieces(&mut rig));
        assert_eq!(receive(100).0, 6);
    } else {
        in_pieces(&mut rig);
    }
    while rig.poll().is_empty() && peer.recv(&[VolatileSlice::from(&mut [0; 100][..])]).is_ok() {}
    // And the end, which is told of once.
    stream.write_all(b"the last").unwrap();
    drop(stream);
    assert!(in_pieces(&mut rig));
    assert_eq!(received(&mut *peer, 100).unwrap(), b"the last");
    assert!(rig.poll().is_empty());
    assert!(received(&mut *peer, 100).unwrap().is_empty());
}

#[test]
fn a_receive_of_more_segments_than_one_call_takes_does_not_take_what_is_left_for_nothing() {
    let mut rig = Rig::new();
    let (mut peer, mut stream) = rig.watched();
    stream.write_all(&[7; 1100]).unwrap();
    let mut bytes = vec![0; 2000];
    let slices: Vec<_> = bytes.chunks_mut(1).map(VolatileSlice::from).collect();
    assert_eq!(peer.recv(&slices).unwrap(), Received { bytes: 1024, all: false });
    assert_eq!(peer.recv(&slices).unwrap(), Received { bytes: 76, all: true });
}

#[test]
fn its_descriptor_is_readable_when_there_is_something_and_only_then() {
    let mut rig = Rig::new();
    let epoll = Arc::clone(&rig.host.epoll);
    assert_eq!(rig.host.fd(), epoll.as_raw_fd());
    let readable = || {
        let outer = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        outer.ctl(ControlOperation::Add, epoll.as_raw_fd(), event).unwrap();
        outer.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
    };
    assert!(!readable());
    let _client = UnixStream::connect(rig.path("")).unwrap();
    assert!(readable());
    rig.poll();
    assert!(!readable());
}

#[test]
fn files_go_with_their_sockets_stale_ones_are_replaced_and_others_are_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let count = || std::fs::read_dir(dir.path()).unwrap().count();
    // As a killed VMM leaves them.
    drop(UnixListener::bind(&path).unwrap());
    drop(records(&beside(&path, "_seqpacket"), true));
    assert_eq!(count(), 2);
    let sockets = VsockSockets::bind(&path).unwrap();
    let error = VsockSockets::bind(&path).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert_eq!(count(), 2);
    drop(sockets);
    assert_eq!(count(), 0);
    // The second is in the way: the first goes again.
    std::fs::write(beside(&path, "_seqpacket"), "precious").unwrap();
    assert_eq!(VsockSockets::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!((count(), path.exists()), (1, false));
    let long = dir.path().join("n".repeat(200));
    assert_eq!(VsockSockets::bind(&long).unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
}
