//! What an ordinary guest and an ordinary host do.

use super::*;

const STREAM: Kind = Kind::Stream;
const PORTS: (u32, u32) = (52, 1024);

fn shutdown(flags: u32) -> (u16, u32, Vec<u8>) {
    (Op::Shutdown as u16, flags, vec![])
}

fn rw(payload: &[u8]) -> (u16, u32, Vec<u8>) {
    (Op::Rw as u16, 0, payload.to_vec())
}

const RST: (u16, u32, Vec<u8>) = (Op::Rst as u16, 0, Vec::new());

#[test]
fn the_guest_learns_its_address_and_both_types_are_on_offer() {
    let vsock = Vsock::new(
        Box::new(FakeHost::new()),
        &VsockOptions { guest_cid: CID, answer_timeout: ANSWER_TIMEOUT, limits: LimiterSpec::default() },
    );
    let mut cid = [0; 8];
    vsock.config().read(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), 42);
    assert_eq!(vsock.offered() & (F_STREAM | F_SEQPACKET), 3);
    assert_eq!(vsock.queue_sizes_max(), [256; 3]);
}

#[test]
fn bytes_pass_both_ways_over_a_connection_of_the_guest() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    rig.send(STREAM, Op::Rw, PORTS, 0, b"from the guest");
    assert_eq!(rig.host.world().ends[end].bytes(), b"from the guest");
    rig.host.world().say(end, b"from the host");
    assert_eq!(rig.packets(), [rw(b"from the host")]);
    let metrics = rig.handle.metrics();
    assert_eq!((metrics.tx_bytes.get(), metrics.rx_bytes.get(), metrics.added.get()), (14, 13, 1));
}

#[test]
fn what_fills_less_than_its_room_was_all_and_nobody_asks_for_more_until_there_is_some() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    let before = rig.host.world().ends[end].receives;
    for round in 1..=3 {
        rig.host.world().say(end, b"question");
        assert_eq!(rig.packets(), [rw(b"question")]);
        rig.send(STREAM, Op::Rw, PORTS, 0, b"answer");
        assert_eq!(rig.host.world().ends[end].receives, before + round);
    }
    // The end is not told of twice.
    rig.host.world().say(end, b"the last");
    rig.host.world().finish(end);
    assert_eq!(rig.packets(), [rw(b"the last"), shutdown(SHUT_SEND)]);
    assert_eq!(rig.host.world().ends[end].receives, before + 5);
}

#[test]
fn a_polled_device_finds_packets_without_a_kick_and_asks_for_kicks_again_when_it_is_polled_no_more() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    rig.device().set_polled(true);
    rig.serve();
    assert!(rig.tx.kicks_suppressed() && !(0..4).any(|queue| rig.device().peek(queue)));
    let mut header = rig.header(STREAM, Op::Rw, PORTS.0, PORTS.1);
    header.len = 7.into();
    rig.publish(&header, b"unasked");
    assert!(rig.device().peek(TX_QUEUE) && !rig.device().peek(RX_QUEUE));
    rig.serve();
    assert!(!rig.device().peek(TX_QUEUE));
    assert_eq!(rig.host.world().ends[end].bytes(), b"unasked");
    rig.device().set_polled(false);
    rig.serve();
    assert!(!rig.tx.kicks_suppressed());
}

#[test]
fn a_port_on_which_nobody_listens_or_only_for_the_other_type_is_refused() {
    let mut rig = Rig::new();
    rig.host.world().listen(Kind::SeqPacket, 53);
    for port in [52, 53] {
        rig.send(STREAM, Op::Request, (port, 1024), 0, &[]);
        assert_eq!(rig.packets(), [RST]);
    }
    assert_eq!(rig.handle.metrics().turned_away.get(), 2);
}

#[test]
fn a_call_of_the_host_is_open_once_the_guest_says_so() {
    let mut rig = Rig::new();
    let end = rig.host.world().call(STREAM, 1024);
    rig.host.world().say(end, b"early");
    rig.serve();
    let (request, _) = rig.packet().unwrap();
    assert_eq!((request.op.get(), request.dst_port.get()), (Op::Request as u16, 1024));
    assert_eq!(rig.packet(), None, "nothing is sent before the guest agrees");
    assert_eq!(rig.host.world().ends[end].port, None);
    let ports = (request.src_port.get(), 1024);
    assert_eq!(ports.0, 1 << 30 | 1024);
    rig.send(STREAM, Op::Response, ports, 0, &[]);
    assert_eq!(rig.host.world().ends[end].port, Some(ports.0));
    assert_eq!(rig.packets(), [rw(b"early")]);
}

#[test]
fn a_call_that_the_guest_refuses_or_does_not_answer_ends() {
    let mut rig = Rig::with(u64::MAX, Duration::ZERO);
    let refused = rig.host.world().call(STREAM, 1024);
    // The request goes out and is overdue at once: time for a reset comes with the next turn.
    rig.until_drained(|device| device.ready(0));
    let (request, _) = rig.packet().unwrap();
    assert_eq!(request.op.get(), Op::Request as u16);
    assert_eq!(rig.packets(), [RST]);
    assert!(rig.host.world().ends[refused].closed);
    let mut rig = Rig::new();
    let refused = rig.host.world().call(STREAM, 1024);
    rig.serve();
    let ports = (rig.packet().unwrap().0.src_port.get(), 1024);
    rig.send(STREAM, Op::Rst, ports, 0, &[]);
    assert!(rig.host.world().ends[refused].closed);
    assert!(rig.packets().is_empty(), "a reset is not answered");
}

#[test]
fn a_deadline_is_waited_for_and_nothing_else_is() {
    let mut rig = Rig::new();
    assert_eq!(rig.serve(), Served::Drained);
    rig.connected(STREAM, PORTS);
    assert_eq!(rig.serve(), Served::Drained);
    rig.host.world().call(STREAM, 1024);
    let Served::After(wait) = rig.serve() else { panic!("the guest has to answer") };
    assert!(wait <= ANSWER_TIMEOUT && wait > Duration::from_secs(1), "{wait:?}");
    let ports = (rig.packet().unwrap().0.src_port.get(), 1024);
    rig.send(STREAM, Op::Response, ports, 0, &[]);
    // The deadline is met; when it comes, it is found out that there is none.
    assert!(matches!(rig.serve(), Served::After(_)));
}

#[test]
fn a_caller_that_hangs_up_before_the_guest_answers_is_taken_back() {
    let mut rig = Rig::new();
    let early = rig.host.world().call(STREAM, 1024);
    rig.host.world().hang_up(early);
    rig.device().ready(0);
    let end = rig.host.world().call(STREAM, 1024);
    assert_eq!(rig.ops().last(), Some(&(Op::Request as u16)));
    rig.host.world().hang_up(end);
    assert_eq!(rig.packets(), [RST]);
    let world = rig.host.world();
    assert!(world.ends[early].closed && world.ends[end].closed);
}

#[test]
fn the_guest_stops_sending_and_still_receives() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    rig.send(STREAM, Op::Rw, PORTS, 0, b"question");
    rig.send(STREAM, Op::Shutdown, PORTS, SHUT_SEND, &[]);
    {
        let mut world = rig.host.world();
        assert!(world.ends[end].shut_send && !world.ends[end].shut_receive && !world.ends[end].closed);
        world.say(end, b"answer");
        world.finish(end);
    }
    assert_eq!(rig.packets(), [rw(b"answer"), shutdown(SHUT_SEND)]);
    rig.send(STREAM, Op::Shutdown, PORTS, SHUT_BOTH, &[]);
    assert_eq!(rig.packets(), [RST]);
    assert!(rig.host.world().ends[end].closed);
}

#[test]
fn the_guest_stops_receiving_and_still_sends() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    rig.send(STREAM, Op::Shutdown, PORTS, SHUT_RECEIVE, &[]);
    rig.host.world().say(end, b"not wanted");
    assert!(rig.packets().is_empty());
    rig.send(STREAM, Op::Rw, PORTS, 0, b"still here");
    let world = rig.host.world();
    assert!(world.ends[end].shut_receive && !world.ends[end].shut_send);
    assert_eq!(world.ends[end].bytes(), b"still here");
}

#[test]
fn the_host_stops_sending_and_still_receives() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    rig.host.world().say(end, b"all of it");
    rig.host.world().finish(end);
    assert_eq!(rig.packets(), [rw(b"all of it"), shutdown(SHUT_SEND)]);
    rig.send(STREAM, Op::Rw, PORTS, 0, b"answer");
    assert_eq!(rig.host.world().ends[end].bytes(), b"answer");
    assert!(rig.packets().is_empty(), "what is shut is said once");
}

#[test]
fn the_host_stops_receiving_and_still_sends() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    rig.host.world().ends[end].deaf = true;
    rig.send(STREAM, Op::Rw, PORTS, 0, b"into the void");
    assert_eq!(rig.packets(), [shutdown(SHUT_RECEIVE)]);
    rig.host.world().say(end, b"mine");
    assert_eq!(rig.packets(), [rw(b"mine")]);
}

#[test]
fn a_host_that_hangs_up_is_heard_to_its_end_and_the_guest_gets_its_time() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    rig.host.world().say(end, b"last words");
    rig.host.world().hang_up(end);
    let packets = rig.packets();
    assert_eq!(
        packets.iter().filter(|packet| packet.0 == Op::Rw as u16).cloned().collect::<Vec<_>>(),
        [rw(b"last words")]
    );
    assert_eq!(packets.last(), Some(&shutdown(SHUT_BOTH)));
    assert!(matches!(rig.serve(), Served::After(_)));
    rig.send(STREAM, Op::Rst, PORTS, 0, &[]);
    assert!(rig.host.world().ends[end].closed);
}

#[test]
fn a_guest_that_does_not_end_what_the_host_hung_up_is_reset() {
    let mut rig = Rig::with(u64::MAX, Duration::ZERO);
    let end = rig.connected(STREAM, PORTS);
    rig.host.world().hang_up(end);
    assert_eq!(rig.packets().last(), Some(&RST));
    assert!(rig.host.world().ends[end].closed);
}

#[test]
fn what_a_guest_sent_before_it_closed_reaches_a_slow_peer_whole() {
    for how in [Op::Shutdown, Op::Rst] {
        let mut rig = Rig::new();
        let end = rig.connected(STREAM, PORTS);
        rig.host.world().make_room(end, 3);
        rig.send(STREAM, Op::Rw, PORTS, 0, b"0123456789");
        rig.send(STREAM, how, PORTS, if how == Op::Shutdown { SHUT_BOTH } else { 0 }, &[]);
        let ops: Vec<_> = rig.ops();
        assert_eq!(ops, if how == Op::Shutdown { vec![Op::Rst as u16] } else { vec![] });
        assert!(!rig.host.world().ends[end].closed);
        // Its ports are free for another meanwhile.
        let other = rig.connected(STREAM, PORTS);
        rig.host.world().make_room(end, 5);
        rig.serve();
        assert_eq!(rig.host.world().ends[end].bytes(), b"01234567");
        rig.host.world().make_room(end, 5);
        rig.serve();
        let world = rig.host.world();
        assert_eq!(world.ends[end].bytes(), b"0123456789");
        assert!(world.ends[end].closed && !world.ends[other].closed);
    }
}

#[test]
fn a_peer_without_room_holds_up_its_own_connection_only_and_is_told_when_it_has_some() {
    let mut rig = Rig::new();
    let slow = rig.connected(STREAM, (52, 1));
    let fast = rig.connected(STREAM, (52, 2));
    rig.host.world().make_room(slow, 0);
    let chunk = vec![7; 1 << 16];
    for _ in 0..WIDE_WINDOW_BYTES / (1 << 16) {
        rig.send(STREAM, Op::Rw, (52, 1), 0, &chunk);
    }
    assert!(rig.packets().is_empty(), "no credit comes back");
    rig.send(STREAM, Op::Rw, (52, 2), 0, b"unhindered");
    assert_eq!(rig.host.world().ends[fast].bytes(), b"unhindered");
    rig.host.world().make_room(slow, usize::MAX);
    rig.serve();
    let (update, _) = rig.packet().unwrap();
    assert_eq!((update.op.get(), update.fwd_cnt.get()), (Op::CreditUpdate as u16, WIDE_WINDOW_BYTES));
    assert_eq!(rig.host.world().ends[slow].bytes().len(), WIDE_WINDOW_BYTES as usize);
}

#[test]
fn a_guest_without_room_gets_nothing_is_asked_once_and_then_gets_the_rest() {
    let mut rig = Rig::new();
    rig.buf_alloc = 6;
    let end = rig.connected(STREAM, PORTS);
    rig.host.world().say(end, b"0123456789");
    assert_eq!(rig.packets(), [rw(b"012345"), (Op::CreditRequest as u16, 0, vec![])]);
    rig.send(STREAM, Op::CreditUpdate, PORTS, 0, &[]);
    assert!(rig.packets().is_empty());
    rig.fwd_cnt = 3;
    rig.send(STREAM, Op::CreditUpdate, PORTS, 0, &[]);
    assert_eq!(rig.packets()[0], rw(b"678"));
    rig.fwd_cnt = 9;
    rig.send(STREAM, Op::CreditUpdate, PORTS, 0, &[]);
    assert_eq!(rig.packets(), [rw(b"9")]);
}

#[test]
fn a_guest_that_asks_for_credit_is_told() {
    let mut rig = Rig::new();
    rig.connected(STREAM, PORTS);
    rig.send(STREAM, Op::Rw, PORTS, 0, b"12345");
    rig.send(STREAM, Op::CreditRequest, PORTS, 0, &[]);
    let (update, _) = rig.packet().unwrap();
    assert_eq!(update.op.get(), Op::CreditUpdate as u16);
    assert_eq!((update.buf_alloc.get(), update.fwd_cnt.get()), (WIDE_WINDOW_BYTES, 5));
}

#[test]
fn connections_take_turns_and_bulk_fills_many_buffers_at_once() {
    let mut rig = Rig::new();
    let a = rig.connected(STREAM, (52, 1));
    let b = rig.connected(STREAM, (52, 2));
    for end in [a, b] {
        rig.host.world().say(end, &[1; 3 * (RX_BYTES as usize - 44)]);
    }
    rig.until_drained(|device| device.ready(0));
    let mut ports = Vec::new();
    while let Some((header, _)) = rig.packet() {
        ports.push(header.dst_port.get());
    }
    assert_eq!(ports, [1, 2, 2, 2, 1, 1]);
    assert_eq!(rig.handle.metrics().rx_packets.get(), 2 + 6, "each buffer is a packet");
}

#[test]
fn bulk_is_whole_whatever_the_buffers_look_like() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    let data: Vec<u8> = (0..40_000u32).map(|n| (n / 7).to_le_bytes()[0]).collect();
    rig.host.world().say(end, &data);
    // A buffer in pieces, the first of which ends within the header; the others are as they were.
    let at = RX_AT + rig.next_buffer % 256 * u64::from(RX_BYTES);
    rig.next_buffer += 1;
    rig.rx.send(&[take(at, 40), take(at + 40, 100), take(at + 140, RX_BYTES - 140)]);
    rig.given.push_back(at);
    let packets = rig.packets();
    assert_eq!(packets.iter().flat_map(|packet| packet.2.clone()).collect::<Vec<_>>(), data);
    assert!(packets.iter().all(|packet| packet.0 == Op::Rw as u16));
}

#[test]
fn records_keep_their_bounds_both_ways_however_they_are_cut() {
    const SEQ: Kind = Kind::SeqPacket;
    let mut rig = Rig::new();
    let end = rig.connected(SEQ, PORTS);
    rig.send(SEQ, Op::Rw, PORTS, SEQ_EOM, b"one");
    rig.send(SEQ, Op::Rw, PORTS, 0, b"t");
    rig.send(SEQ, Op::Rw, PORTS, 0, b"");
    rig.send(SEQ, Op::Rw, PORTS, SEQ_EOM, b"wo");
    rig.send(SEQ, Op::Rw, PORTS, 0, b"three");
    rig.send(SEQ, Op::Rw, PORTS, SEQ_EOM, b"");
    rig.send(SEQ, Op::Rw, PORTS, SEQ_EOM, b"");
    assert_eq!(rig.host.world().ends[end].received, [&b"one"[..], b"two", b"three"]);
    // Larger than a receive buffer: in parts, the last of which is marked.
    let long: Vec<u8> = (0..10_000u32).map(|n| n.to_le_bytes()[0]).collect();
    rig.host.world().say(end, &long);
    rig.host.world().say(end, b"short");
    let packets = rig.packets();
    let flags: Vec<_> = packets.iter().map(|packet| packet.1).collect();
    assert_eq!(flags, [0, 0, SEQ_EOM, SEQ_EOM]);
    assert_eq!(packets[..3].iter().flat_map(|packet| packet.2.clone()).collect::<Vec<_>>(), long);
    assert_eq!(packets[3].2, b"short");
}

#[test]
fn records_wait_for_a_slow_peer_one_by_one() {
    const SEQ: Kind = Kind::SeqPacket;
    let mut rig = Rig::new();
    let end = rig.connected(SEQ, PORTS);
    rig.host.world().make_room(end, 2);
    for record in [&b"abc"[..], b"de", b"f"] {
        rig.send(SEQ, Op::Rw, PORTS, SEQ_EOM, record);
    }
    assert!(rig.host.world().ends[end].received.is_empty(), "the order is kept");
    rig.send(SEQ, Op::Shutdown, PORTS, SHUT_BOTH, &[]);
    rig.host.world().make_room(end, 5);
    rig.serve();
    assert_eq!(rig.host.world().ends[end].received, [&b"abc"[..], b"de"]);
    rig.host.world().make_room(end, 1);
    rig.serve();
    assert_eq!(rig.host.world().ends[end].received, [&b"abc"[..], b"de", b"f"]);
    assert!(rig.host.world().ends[end].closed);
}

#[test]
fn a_record_that_the_guest_could_never_hold_ends_its_connection() {
    const SEQ: Kind = Kind::SeqPacket;
    for (room, record) in [(10, 11), (1 << 18, RECORD_BYTES_MAX + 1)] {
        let mut rig = Rig::new();
        rig.buf_alloc = room;
        let end = rig.connected(SEQ, PORTS);
        rig.host.world().say(end, &vec![1; record]);
        assert_eq!(rig.packets(), [RST]);
        assert!(rig.host.world().ends[end].closed);
    }
}

#[test]
fn a_driver_without_records_gets_none_and_can_make_none() {
    let mut rig = Rig::with(F_STREAM, ANSWER_TIMEOUT);
    rig.host.world().listen(Kind::SeqPacket, 52);
    rig.send(Kind::SeqPacket, Op::Request, PORTS, 0, &[]);
    assert_eq!(rig.packets(), [RST]);
    let end = rig.host.world().call(Kind::SeqPacket, 1024);
    assert!(rig.packets().is_empty());
    assert!(rig.host.world().ends[end].closed);
}

#[test]
fn one_interrupt_tells_of_a_batch() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    let before = rig.irq.raised();
    rig.host.world().say(end, &[1; 5 * (RX_BYTES as usize - 44)]);
    rig.device().ready(0);
    assert_eq!(rig.irq.raised(), before + 1);
    assert_eq!(rig.packets().len(), 5);
}

#[test]
fn a_reset_closes_all_and_the_next_driver_begins_anew() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    let idle = rig.device.take().unwrap().stop();
    assert!(rig.host.world().ends[end].closed);
    assert_eq!(rig.host.world().resets, 1);
    assert_eq!(idle.kind(), DeviceKind::Vsock);
}

#[test]
fn a_host_that_fails_ends_that_connection_only() {
    let mut rig = Rig::new();
    let bad = rig.connected(STREAM, (52, 1));
    let good = rig.connected(STREAM, (52, 2));
    rig.host.world().ends[bad].errors.push_back(std::io::ErrorKind::Other);
    rig.host.world().say(bad, b"x");
    assert_eq!(rig.packets(), [RST]);
    assert_eq!(rig.handle.metrics().rx_read_failures.get(), 1);
    rig.host.world().ends[good].errors.push_back(std::io::ErrorKind::Other);
    rig.send(STREAM, Op::Rw, (52, 2), 0, b"x");
    assert_eq!(rig.packets(), [RST]);
    assert_eq!(rig.handle.metrics().tx_write_failures.get(), 1);
    assert_eq!((rig.handle.metrics().removed.get(), rig.handle.metrics().killed.get()), (2, 2));
}
