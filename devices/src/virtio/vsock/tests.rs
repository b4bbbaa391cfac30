//! A socket device, its driver and its host, all in memory.

mod connections;
mod hostile;
mod limits;
mod model;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::mem::Ram;
use crate::testing::irq::CountingIrq;
use crate::testing::queue::{Driver, give, take};
use crate::testing::ram;
use crate::testing::vsock::FakeHost;
use crate::virtio::Served;

const CID: u32 = 42;
/// Where the guest's packets and receive buffers lie.
const TX_AT: u64 = 0x10_0000;
const RX_AT: u64 = 0x20_0000;
/// Bytes of a receive buffer: as Linux has them.
const RX_BYTES: u32 = 4096;
const SIZE: u16 = 16;

struct Rig {
    ram: Ram,
    rx: Driver,
    tx: Driver,
    host: FakeHost,
    irq: Arc<CountingIrq>,
    handle: VsockHandle,
    device: Option<Box<dyn Running>>,
    /// Receive buffers that are with the device, in order.
    given: VecDeque<u64>,
    next_buffer: u64,
    /// What the guest says of its own room.
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Rig {
    fn new() -> Self {
        Self::with(u64::MAX, ANSWER_TIMEOUT)
    }

    fn limited(limits: LimiterSpec) -> Self {
        Self::with_options(u64::MAX, VsockOptions { guest_cid: CID, answer_timeout: ANSWER_TIMEOUT, limits })
    }

    /// A driver that takes these features, without EVENT_IDX; a guest that has this long to answer.
    fn with(features: u64, answer_timeout: Duration) -> Self {
        let limits = LimiterSpec::default();
        Self::with_options(features, VsockOptions { guest_cid: CID, answer_timeout, limits })
    }

    fn with_options(features: u64, options: VsockOptions) -> Self {
        let ram = ram::flat(0x40_0000);
        let host = FakeHost::new();
        let vsock = Vsock::new(Box::new(host.clone()), &options);
        let handle = vsock.handle();
        let irq = CountingIrq::new();
        let (rx, tx) = (Driver::new(&ram, 0x1000, SIZE), Driver::new(&ram, 0x2000, SIZE));
        let event = Driver::new(&ram, 0x3000, SIZE);
        let device = Box::new(vsock).start(Granted {
            ram: Ram::clone(&ram),
            features: features & (F_COMMON | F_STREAM | F_SEQPACKET) & !crate::virtio::queue::F_EVENT_IDX,
            queues: vec![Some(rx.queue()), Some(tx.queue()), Some(event.queue())],
            interrupt: Arc::clone(&irq) as Arc<_>,
        });
        let Ok(device) = device else { panic!("it starts") };
        let mut rig = Self {
            ram,
            rx,
            tx,
            host,
            irq,
            handle,
            device: Some(device),
            given: VecDeque::new(),
            next_buffer: 0,
            buf_alloc: 1 << 18,
            fwd_cnt: 0,
        };
        rig.give_buffers(8);
        rig
    }

    fn device(&mut self) -> &mut dyn Running {
        &mut **self.device.as_mut().unwrap()
    }

    fn give_buffers(&mut self, count: u64) {
        for _ in 0..count {
            let at = RX_AT + self.next_buffer % 256 * u64::from(RX_BYTES);
            self.next_buffer += 1;
            self.rx.send(&[take(at, RX_BYTES)]);
            self.given.push_back(at);
        }
    }

    /// Serves everything until nothing is left to do; whether the device still works.
    fn serve(&mut self) -> Served {
        let mut last = Served::Drained;
        for _ in 0..2 {
            for queue in [TX_QUEUE, RX_QUEUE] {
                last = self.until_drained(|device| device.serve(queue));
            }
            last = match self.until_drained(|device| device.ready(0)) {
                Served::Drained => last,
                other => other,
            };
        }
        last
    }

    fn until_drained(&mut self, mut what: impl FnMut(&mut dyn Running) -> Served) -> Served {
        for _ in 0..100 {
            let served = what(self.device());
            if served != Served::More {
                return served;
            }
        }
        panic!("work without end");
    }

    fn header(&self, kind: Kind, op: Op, host_port: u32, guest_port: u32) -> Header {
        Header {
            src_cid: u64::from(CID).into(),
            dst_cid: HOST_CID.into(),
            src_port: guest_port.into(),
            dst_port: host_port.into(),
            kind: (kind as u16).into(),
            op: (op as u16).into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
            ..Header::default()
        }
    }

    /// Publishes a packet whose header and payload lie in two descriptors; nobody is served yet.
    fn publish(&mut self, header: &Header, payload: &[u8]) {
        ram::write(&self.ram, TX_AT, header.as_bytes());
        ram::write(&self.ram, TX_AT + 0x1000, payload);
        let len = u32::try_from(payload.len()).unwrap();
        match len {
            0 => self.tx.send(&[give(TX_AT, 44)]),
            _ => self.tx.send(&[give(TX_AT, 44), give(TX_AT + 0x1000, len)]),
        };
    }

    /// Sends a packet as it is.
    fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        self.publish(header, payload);
        self.serve();
        assert!(self.tx.used().is_some(), "a packet is always given back");
    }

    fn send(&mut self, kind: Kind, op: Op, ports: (u32, u32), flags: u32, payload: &[u8]) {
        let mut header = self.header(kind, op, ports.0, ports.1);
        header.flags = flags.into();
        header.len = u32::try_from(payload.len()).unwrap().into();
        self.send_raw(&header, payload);
    }

    /// The next packet that the guest received; its buffer goes back to the device.
    fn packet(&mut self) -> Option<(Header, Vec<u8>)> {
        let (_, len) = self.rx.used()?;
        let at = self.given.pop_front().unwrap();
        let bytes = ram::read(&self.ram, at, len as usize);
        let (header, payload) = Header::read_from_prefix(&bytes).unwrap();
        assert_eq!(header.len.get() as usize, payload.len());
        assert_eq!((header.src_cid.get(), header.dst_cid.get()), (HOST_CID, u64::from(CID)));
        let payload = payload.to_vec();
        self.give_buffers(1);
        Some((header, payload))
    }

    /// What the guest received: operation, flags and payload of each packet, until there are no more.
    fn packets(&mut self) -> Vec<(u16, u32, Vec<u8>)> {
        let mut packets = Vec::new();
        loop {
            self.serve();
            let Some((header, payload)) = self.packet() else { return packets };
            packets.push((header.op.get(), header.flags.get(), payload));
        }
    }

    /// The operations of these.
    fn ops(&mut self) -> Vec<u16> {
        self.packets().into_iter().map(|(op, ..)| op).collect()
    }

    /// A connection that the guest made to a listener on the host: its ports, and the place of the host's end.
    fn connected(&mut self, kind: Kind, ports: (u32, u32)) -> usize {
        let end = {
            let mut world = self.host.world();
            world.listen(kind, ports.0);
            world.ends.len()
        };
        self.send(kind, Op::Request, ports, 0, &[]);
        assert_eq!(self.ops(), [Op::Response as u16]);
        end
    }
}
