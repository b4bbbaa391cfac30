//! What a guest does that means harm.

use super::*;
use crate::testing::queue::WRITE;

const STREAM: Kind = Kind::Stream;
const PORTS: (u32, u32) = (52, 1024);
const RST: u16 = Op::Rst as u16;
const ALL_OPS: [Op; 7] =
    [Op::Request, Op::Response, Op::Rst, Op::Shutdown, Op::Rw, Op::CreditUpdate, Op::CreditRequest];

#[test]
fn a_chain_without_a_whole_header_is_given_back_and_nothing_else_happens() {
    let mut rig = Rig::new();
    for len in [0, 1, 43] {
        rig.tx.send(&[give(TX_AT, len)]);
        rig.tx.send(&[take(RX_AT, 4096)]);
        rig.serve();
        assert!(rig.tx.used().is_some() && rig.tx.used().is_some());
    }
    assert!(rig.packets().is_empty());
    assert_eq!(rig.handle.metrics().tx_refused.get(), 6);
}

#[test]
fn a_header_in_many_pieces_is_a_header() {
    let mut rig = Rig::new();
    rig.host.world().listen(STREAM, 52);
    let header = rig.header(STREAM, Op::Request, 52, 1024);
    ram::write(&rig.ram, TX_AT, header.as_bytes());
    rig.tx.send(&[give(TX_AT, 1), give(TX_AT + 1, 20), give(TX_AT, 0), give(TX_AT + 21, 23)]);
    assert_eq!(rig.ops(), [Op::Response as u16]);
}

#[test]
fn lengths_operations_types_and_addresses_that_can_not_be_are_refused() {
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    let sound = rig.header(STREAM, Op::Rw, PORTS.0, PORTS.1);
    let answered = [
        Header { len: 6.into(), ..sound },
        Header { len: u32::MAX.into(), ..sound },
        Header { op: 0.into(), ..sound },
        Header { op: 8.into(), ..sound },
        Header { op: 0xffff.into(), ..sound },
        Header { kind: 0.into(), ..sound },
        Header { kind: 3.into(), ..sound },
        Header { op: (Op::CreditUpdate as u16).into(), len: 1.into(), ..sound },
    ];
    for header in answered {
        rig.send_raw(&header, b"12345");
        assert_eq!(rig.ops(), [RST], "{header:?}");
    }
    for cid in [0, 1, 2, 3, u64::MAX] {
        rig.send_raw(&Header { src_cid: cid.into(), ..sound }, b"12345");
        assert!(rig.ops().is_empty(), "whoever {cid} is, it is not this guest");
    }
    assert!(rig.host.world().ends[end].received.is_empty());
    // Somebody who is not there: the answer comes from there.
    rig.send_raw(&Header { dst_cid: 3.into(), ..sound }, b"12345");
    rig.serve();
    let (_, len) = rig.rx.used().unwrap();
    let reset = ram::read(&rig.ram, rig.given.pop_front().unwrap(), len as usize);
    let reset = Header::read_from_bytes(&reset).unwrap();
    assert_eq!((reset.src_cid.get(), reset.dst_cid.get(), reset.op.get()), (3, CID.into(), RST));
}

#[test]
fn whatever_belongs_to_no_connection_is_reset_but_a_reset() {
    let mut rig = Rig::new();
    for op in ALL_OPS {
        rig.send(STREAM, op, PORTS, u32::MAX, &[]);
        assert_eq!(rig.ops(), if op == Op::Rst { vec![] } else { vec![RST] }, "{op:?}");
    }
}

#[test]
fn what_does_not_fit_the_state_ends_the_connection() {
    let cases: [(&str, &[Op]); 4] = [
        ("a second request", &[Op::Request]),
        ("a response that nobody asked for", &[Op::Response]),
        ("payload after the last", &[Op::Shutdown, Op::Rw]),
        ("payload of the other type", &[]),
    ];
    for (what, ops) in cases {
        let mut rig = Rig::new();
        let end = rig.connected(STREAM, PORTS);
        for op in ops {
            rig.send(STREAM, *op, PORTS, if *op == Op::Shutdown { SHUT_SEND } else { 0 }, &[]);
        }
        if ops.is_empty() {
            rig.send(Kind::SeqPacket, Op::Rw, PORTS, 0, b"x");
        }
        assert_eq!(rig.ops(), [RST], "{what}");
        assert!(rig.host.world().ends[end].closed, "{what}");
    }
}

#[test]
fn before_the_guest_agrees_nothing_but_its_answer_is_taken() {
    for op in ALL_OPS {
        let mut rig = Rig::new();
        let end = rig.host.world().call(STREAM, 1024);
        rig.serve();
        let ports = (rig.packet().unwrap().0.src_port.get(), 1024);
        rig.send(STREAM, op, ports, 0, &[]);
        assert_eq!(rig.host.world().ends[end].closed, op != Op::Response, "{op:?}");
    }
}

#[test]
fn payload_up_to_the_credit_is_held_and_one_byte_more_ends_the_connection() {
    for (kind, window) in [(STREAM, WIDE_WINDOW_BYTES), (Kind::SeqPacket, WINDOW_BYTES)] {
        let mut rig = Rig::new();
        let end = rig.connected(kind, PORTS);
        rig.host.world().make_room(end, 0);
        let chunk = vec![1; 1 << 16];
        for _ in 0..window / (1 << 16) {
            rig.send(kind, Op::Rw, PORTS, 0, &chunk);
            assert!(rig.ops().is_empty());
        }
        rig.send(kind, Op::Rw, PORTS, 0, b"x");
        assert_eq!(rig.ops(), [RST]);
        assert!(rig.host.world().ends[end].closed);
    }
}

#[test]
fn many_streams_get_the_narrow_window() {
    let mut rig = Rig::new();
    rig.host.world().listen(STREAM, 52);
    let mut windows = Vec::new();
    for port in 0..18 {
        rig.send(STREAM, Op::Request, (52, port), 0, &[]);
        rig.serve();
        windows.push(rig.packet().unwrap().0.buf_alloc.get());
    }
    assert_eq!(windows[..16], [WIDE_WINDOW_BYTES; 16]);
    assert_eq!(windows[16..], [WINDOW_BYTES; 2]);
    // One that ends gives its window to the next.
    rig.send(STREAM, Op::Rst, (52, 0), 0, &[]);
    rig.send(STREAM, Op::Request, (52, 0), 0, &[]);
    rig.serve();
    assert_eq!(rig.packet().unwrap().0.buf_alloc.get(), WIDE_WINDOW_BYTES);
}

#[test]
fn a_guest_that_lies_about_its_credit_harms_itself_only() {
    for (buf_alloc, fwd_cnt) in [(0, 0), (0, 7), (u32::MAX, 1), (1, u32::MAX), (u32::MAX, u32::MAX)] {
        let mut rig = Rig::new();
        let end = rig.connected(STREAM, (52, 1));
        let honest = rig.connected(STREAM, (52, 2));
        (rig.buf_alloc, rig.fwd_cnt) = (buf_alloc, fwd_cnt);
        rig.send(STREAM, Op::CreditUpdate, (52, 1), 0, &[]);
        rig.host.world().say(end, &[1; 100]);
        rig.host.world().say(honest, b"x");
        let ports: Vec<_> = std::iter::from_fn(|| {
            rig.serve();
            rig.packet().filter(|(header, _)| header.op.get() == Op::Rw as u16)
        })
        .map(|(header, _)| header.dst_port.get())
        .collect();
        assert!(ports.contains(&2) || ports.is_empty(), "{ports:?}");
        while rig.packet().is_some() {}
        (rig.buf_alloc, rig.fwd_cnt) = (1 << 18, 0);
        rig.host.world().say(honest, b"y");
        assert!(rig.packets().iter().any(|packet| packet.2.ends_with(b"y")));
    }
}

#[test]
fn of_a_storm_of_connections_1023_are_made_and_each_other_is_refused() {
    let mut rig = Rig::new();
    rig.host.world().listen(STREAM, 52);
    let mut ops = Vec::new();
    for port in 0..2000 {
        rig.send(STREAM, Op::Request, (52, port), 0, &[]);
        ops.extend(rig.ops());
    }
    assert_eq!(ops.iter().filter(|op| **op == Op::Response as u16).count(), CONNECTIONS_MAX);
    assert_eq!(ops.iter().filter(|op| **op == RST).count(), 2000 - CONNECTIONS_MAX);
    let end = rig.host.world().call(STREAM, 1024);
    assert!(rig.ops().is_empty());
    assert!(rig.host.world().ends[end].closed, "nor is there room for a call");
    rig.send(STREAM, Op::Rst, (52, 0), 0, &[]);
    rig.send(STREAM, Op::Request, (52, 3000), 0, &[]);
    assert_eq!(rig.ops(), [Op::Response as u16]);
    assert_eq!(rig.handle.metrics().turned_away.get(), 2000 - 1023 + 1);
}

#[test]
fn answers_that_the_guest_does_not_take_make_its_packets_wait_and_none_is_lost() {
    let mut rig = Rig::new();
    let header = rig.header(STREAM, Op::Rw, 1, 1);
    ram::write(&rig.ram, TX_AT, header.as_bytes());
    // Eight receive buffers, and many more packets that are each to be reset.
    let mut given_back = 0;
    let mut published = 0;
    while published < 1000 {
        for _ in 0..SIZE.min(1000 - published) {
            rig.tx.send(&[give(TX_AT, 44)]);
            published += 1;
        }
        rig.serve();
        let before = given_back;
        given_back += std::iter::from_fn(|| rig.tx.used()).count();
        if given_back - before < usize::from(SIZE) {
            break;
        }
    }
    assert!(given_back <= 8 + 256, "{given_back} packets were taken whose answers nobody takes");
    assert!(rig.handle.metrics().tx_stalls.get() > 0);
    // As soon as it takes some, as many of its packets are looked at, without another kick.
    let mut resets: Vec<u16> = Vec::new();
    while let Some((header, _)) = rig.packet() {
        resets.push(header.op.get());
        if resets.len() == 8 {
            break;
        }
    }
    rig.until_drained(|device| device.serve(RX_QUEUE));
    let next = std::iter::from_fn(|| rig.tx.used()).count();
    assert_eq!(next, 8);
    given_back += next;
    resets.extend(rig.ops());
    assert_eq!(resets.len(), usize::from(published));
    given_back += std::iter::from_fn(|| rig.tx.used()).count();
    assert_eq!(given_back, usize::from(published));
}

#[test]
fn connections_that_come_and_go_unheard_leave_nothing_to_say() {
    let mut rig = Rig::new();
    rig.host.world().listen(STREAM, 52);
    // Without a buffer for any answer.
    let given = rig.given.len();
    for port in 0..1200 {
        rig.send(STREAM, Op::Request, (52, port), 0, &[]);
        rig.send(STREAM, Op::Rst, (52, port), 0, &[]);
    }
    assert!(rig.ops().len() <= given);
    let calls: Vec<_> = (0..500).map(|port| rig.host.world().call(STREAM, port)).collect();
    for call in calls {
        rig.host.world().hang_up(call);
    }
    let taken = rig.ops().len();
    assert!(taken <= 2 * 500, "{taken}");
}

#[test]
fn a_receive_buffer_without_room_for_payload_breaks_the_queue_and_closes_all() {
    for len in [0, 43, 44] {
        let mut rig = Rig::new();
        let end = rig.connected(STREAM, PORTS);
        rig.host.world().say(end, &vec![1; 9 * RX_BYTES as usize]);
        rig.serve();
        rig.rx.send(&[take(RX_AT, len)]);
        assert_eq!(rig.serve(), Served::Broken);
        assert_eq!(rig.irq.resets_asked(), 1);
        assert!(rig.host.world().ends[end].closed);
        assert_eq!(rig.device().ready(0), Served::Broken);
        rig.device.take().unwrap().stop();
    }
}

#[test]
fn chains_that_loop_or_lie_outside_ram_break_the_queue() {
    for (addr, len, flags) in [(TX_AT, 44, 1), (u64::MAX - 10, 44, 0), (0x40_0000 - 4, 44, 0)] {
        let mut rig = Rig::new();
        rig.tx.write_desc(0, addr, len, flags, 0);
        rig.tx.publish(0);
        assert_eq!(rig.device().serve(TX_QUEUE), Served::Broken);
    }
    let mut rig = Rig::new();
    let end = rig.connected(STREAM, PORTS);
    rig.host.world().say(end, &vec![1; 9 * RX_BYTES as usize]);
    rig.serve();
    rig.rx.write_desc(0, u64::MAX - 100, 4096, WRITE, 0);
    rig.rx.publish(0);
    assert_eq!(rig.device().serve(RX_QUEUE), Served::Broken);
}

#[test]
fn a_reset_in_the_middle_of_everything_leaves_nothing() {
    let mut rig = Rig::new();
    let slow = rig.connected(STREAM, (52, 1));
    rig.host.world().make_room(slow, 0);
    rig.send(STREAM, Op::Rw, (52, 1), 0, b"waits");
    let dying = rig.connected(STREAM, (52, 2));
    rig.host.world().make_room(dying, 0);
    rig.send(STREAM, Op::Rw, (52, 2), 0, b"waits too");
    rig.send(STREAM, Op::Rst, (52, 2), 0, &[]);
    let asked = rig.host.world().call(STREAM, 1);
    rig.device().ready(0);
    rig.device.take().unwrap().stop();
    let world = rig.host.world();
    assert!([slow, dying, asked].into_iter().all(|end| world.ends[end].closed));
}

#[test]
fn queues_and_sources_that_are_not_there_are_ignored() {
    let mut rig = Rig::new();
    for queue in [EVENT_QUEUE, 3, u16::MAX] {
        assert_eq!(rig.device().serve(queue), Served::Drained);
    }
    assert_eq!(rig.device().ready(1), Served::Drained);
}
