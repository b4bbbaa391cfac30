use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use devices::mem::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;

const BYTES: u32 = 1 << 20;

fn ram() -> Ram {
    devices::testing::ram::flat(BYTES as usize)
}

/// A file whose byte at `n` is that of `pattern`, on the file system of the checkout: others have no O_DIRECT.
fn file() -> Arc<File> {
    let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let bytes: Vec<u8> = (0..BYTES).map(pattern).collect();
    file.write_all(&bytes).unwrap();
    file.sync_all().unwrap();
    Arc::new(file)
}

fn pattern(at: u32) -> u8 {
    (at / 512).to_le_bytes()[0] ^ at.to_le_bytes()[0]
}

/// The ring; `None`, and a word, where the kernel has none.
fn uring(file: &Arc<File>, depth: u16) -> Option<Uring> {
    match Uring::new(Arc::clone(file), depth, 1, 1) {
        Ok(ring) => Some(ring),
        Err(error) => {
            eprintln!("skipped: no io_uring here: {error}");
            None
        }
    }
}

fn finish(ring: &mut Uring, count: usize) -> Vec<(u16, usize)> {
    let mut finished = Vec::new();
    while finished.len() < count {
        ring.wait().unwrap();
        finished.extend(std::iter::from_fn(|| ring.pop()).map(|done| (done.tag, done.result.unwrap())));
    }
    finished.sort_unstable();
    finished
}

#[test]
fn many_transfers_of_one_and_several_segments_move_the_right_bytes() {
    let (file, ram) = (file(), ram());
    let Some(mut ring) = uring(&file, 8) else { return };
    let slice = |at: u64, len: usize| ram.get_slice(GuestAddress(at), len).unwrap();
    ram.write_slice(&[0xAB; 1024], GuestAddress(0x8000)).unwrap();
    ring.push(0, Transfer::Read { offset: 512 }, &ram, &[slice(0, 512)]);
    ring.push(7, Transfer::Read { offset: 4096 }, &ram, &[slice(0x1000, 100), slice(0x2000, 924)]);
    ring.push(3, Transfer::Write { offset: 8192 }, &ram, &[slice(0x8000, 1000), slice(0x83e8, 24)]);
    ring.push(4, Transfer::Write { offset: 16384 }, &ram, &[slice(0x8000, 512)]);
    ring.push(5, Transfer::Flush, &ram, &[]);
    ring.push(6, Transfer::Read { offset: u64::from(BYTES) }, &ram, &[slice(0x4000, 512)]);
    assert_eq!(finish(&mut ring, 6), [(0, 512), (3, 1024), (4, 512), (5, 0), (6, 0), (7, 1024)]);
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    };
    let expected = |from: u32, len: u32| (from..from + len).map(pattern).collect::<Vec<_>>();
    assert_eq!(read(0, 512), expected(512, 512));
    assert_eq!([read(0x1000, 100), read(0x2000, 924)].concat(), expected(4096, 1024));
    let mut written = [0; 1024];
    file.read_exact_at(&mut written, 8192).unwrap();
    assert_eq!(written, [0xAB; 1024]);
    // Tags are free again.
    ring.push(0, Transfer::Flush, &ram, &[]);
    assert_eq!(finish(&mut ring, 1), [(0, 0)]);
}

#[test]
fn its_source_becomes_readable_when_the_disk_is_done() {
    let plain = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    plain.as_file().write_all_at(&[7; 64 << 10], 0).unwrap();
    plain.as_file().sync_all().unwrap();
    let direct = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(plain.path());
    let file = Arc::new(direct.unwrap_or_else(|_| plain.reopen().unwrap()));
    let ram = ram();
    let Some(mut ring) = uring(&file, 4) else { return };
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 1);
    epoll.ctl(ControlOperation::Add, ring.source(), event).unwrap();
    for round in 0..200u64 {
        let slice = ram.get_slice(GuestAddress(0x1000), 4096).unwrap();
        ring.push(0, Transfer::Read { offset: round % 16 * 4096 }, &ram, &[slice]);
        ring.poll().unwrap();
        let mut done = ring.pop();
        while done.is_none() {
            let mut events = [EpollEvent::default()];
            assert_eq!(epoll.wait(10_000, &mut events).unwrap(), 1, "round {round}: nobody was woken");
            ring.poll().unwrap();
            done = ring.pop();
        }
        assert_eq!(done.unwrap().result.unwrap(), 4096);
    }
}

#[test]
fn a_ring_that_is_dropped_has_finished_what_it_was_given() {
    let (file, ram) = (file(), ram());
    let Some(mut ring) = uring(&file, 8) else { return };
    for tag in 0..8u16 {
        let slice = ram.get_slice(GuestAddress(u64::from(tag) * 512), 512).unwrap();
        ring.push(tag, Transfer::Read { offset: u64::from(tag) * 512 }, &ram, &[slice]);
        if tag == 4 {
            ring.poll().unwrap();
        }
    }
    drop(ring);
    let mut bytes = vec![0; 8 * 512];
    ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    assert_eq!(bytes, (0..8 * 512).map(pattern).collect::<Vec<_>>());
    assert_eq!(Arc::strong_count(&ram), 1, "nothing of it holds guest memory any more");
}

#[test]
fn what_it_was_not_made_for_is_denied_by_the_kernel() {
    let file = file();
    let Some(mut ring) = uring(&file, 4) else { return };
    let mut tried = |entry: io_uring::squeue::Entry| {
        ring.kept[0] = Some(Kept { iovecs: vec![], _ram: ram() });
        ring.in_flight += 1;
        // SAFETY: the entries below refer to no memory.
        unsafe { ring.ring.submission().push(&entry) }.unwrap();
        ring.wait().unwrap();
        ring.pop().unwrap().result.unwrap_err().raw_os_error()
    };
    assert_eq!(tried(opcode::Nop::new().build()), Some(libc::EACCES));
    let fd = types::Fd(file.as_raw_fd());
    assert_eq!(tried(opcode::Fallocate::new(fd, 512).build()), Some(libc::EACCES));
    assert_eq!(tried(opcode::Close::new(fd).build()), Some(libc::EACCES));
    assert!(ring.ring.submitter().register_files(&[file.as_raw_fd()]).is_err());
}

#[test]
#[should_panic(expected = "buffers are guest RAM")]
fn memory_that_is_no_guests_is_refused() {
    let (file, ram) = (file(), ram());
    let mut ring = uring(&file, 4).expect("buffers are guest RAM, said where there is no io_uring");
    let mut mine = [0u8; 512];
    ring.push(0, Transfer::Read { offset: 0 }, &ram, &[VolatileSlice::from(&mut mine[..])]);
}

#[test]
fn what_is_not_aligned_is_left_to_other_means() {
    let (file, ram) = (file(), ram());
    if uring(&file, 4).is_none() {
        return;
    }
    let mut ring = Uring::new(Arc::clone(&file), 4, 512, 512).unwrap();
    let slice = |at: u64, len: usize| ram.get_slice(GuestAddress(at), len).unwrap();
    ring.push(0, Transfer::Read { offset: 0 }, &ram, &[slice(512, 512)]);
    ring.push(1, Transfer::Read { offset: 0 }, &ram, &[slice(513, 512)]);
    ring.push(2, Transfer::Read { offset: 0 }, &ram, &[slice(1024, 100), slice(2048, 412)]);
    ring.wait().unwrap();
    let mut refused: Vec<_> = (0..2).map(|_| ring.pop().unwrap()).collect();
    refused.sort_by_key(|done| done.tag);
    assert!(refused.iter().zip(1..).all(|(done, tag)| {
        done.tag == tag && done.result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }));
    assert_eq!(finish(&mut ring, 1), [(0, 512)]);
}
