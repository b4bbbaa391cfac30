//! PCI: a bus with three functions behind both ways of configuration access, and their BARs, under a guest that accesses them
//! as it likes.

use std::sync::Arc;

use devices::bus::Bus;
use devices::pci::msix::MsixSink;
use devices::pci::root::{Bar, ECAM_SIZE, PORTS_BASE, PORTS_LEN, PciBars, PciEcam, PciPorts, PciRoot};
use devices::testing::fake::FakeDevice;
use devices::testing::net::FakeTap;
use devices::testing::owner::InlineOwner;
use devices::testing::ram;
use devices::testing::transport::CountingSink;
use devices::virtio::Idle;
use devices::virtio::net::{Net, NetOptions};
use devices::virtio::rng::Rng;
use devices::virtio::spec::pci::common;
use devices::virtio::spec::status;
use devices::virtio::transport::pci::{BAR_SIZE, PORTS_SIZE, PciTransport, Place, vector_count};

use crate::Input;
use crate::guest::RAM_BYTES;

/// Steps of one input at most.
const STEPS_MAX: usize = 256;
/// Where the bus is.
const ECAM: u64 = 0xe000_0000;
/// Where the first function's BAR is; the others follow.
const BARS: u32 = 0xe100_0000;
/// Where the first function's ports are; likewise.
const PORTS: u16 = 0x1080;
/// Functions beside the host bridge, from slot 1 on.
const FUNCTIONS: u64 = 3;
/// Bytes of configuration space of a slot, its eight functions included.
const SLOT: u64 = 1 << 15;
/// Of the header: command, status.
const COMMAND: u64 = 0x04;
/// Bits of the command register that a guest may write.
const COMMAND_WRITABLE: u32 = 0x407;
const BAR0: u64 = 0x10;
const BAR1: u64 = 0x14;

/// The machine as a guest sees it.
struct Machine {
    memory: Bus,
    ports: Bus,
    functions: Vec<Arc<PciTransport>>,
}

impl Machine {
    fn new() -> Self {
        let ram = ram::flat(RAM_BYTES);
        let (mut memory, mut ports, root) = (Bus::new(), Bus::new(), PciRoot::new());
        let net = Net::new(Box::new(FakeTap::new()), &NetOptions::default());
        let devices: [Box<dyn Idle>; FUNCTIONS as usize] =
            [Box::new(net), Box::new(Rng::new(&Default::default())), FakeDevice::new().0];
        let mut functions = Vec::new();
        let places = (BARS..).step_by(BAR_SIZE as usize).zip((PORTS..).step_by(PORTS_SIZE.into()));
        for ((address, first), device) in places.zip(devices) {
            let queues = u16::try_from(device.queue_sizes_max().len()).expect("few");
            let sink: Arc<dyn MsixSink> = CountingSink::new(vector_count(queues));
            let owner = Box::new(InlineOwner::new());
            let place = Place { memory: address, ports: first };
            let function = Arc::new(PciTransport::new(device, Arc::clone(&ram), owner, sink, place));
            root.add(function.clone()).expect("there is room");
            memory.insert(address.into(), BAR_SIZE.into(), function.clone()).expect("disjoint");
            functions.push(function);
        }
        let root = Arc::new(root);
        memory.insert(ECAM, ECAM_SIZE, Arc::new(PciEcam::new(Arc::clone(&root)))).expect("disjoint");
        let kicks = PciBars::new(Arc::clone(&root), Bar::Ports, PORTS_SIZE.into());
        ports
            .insert(u64::from(PORTS) - u64::from(PORTS_SIZE), kicks.size(), Arc::new(kicks))
            .expect("disjoint");
        ports.insert(PORTS_BASE, PORTS_LEN, Arc::new(PciPorts::new(root))).expect("disjoint");
        Self { memory, ports, functions }
    }

    /// 32 bits of configuration space.
    fn config(&self, slot: u64, offset: u64) -> u32 {
        let mut data = [0xa5; 4];
        self.memory.read(ECAM + SLOT * slot + offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// What is fixed of a function, whatever a guest wrote: identity, class, where the BAR is or how large, capabilities.
    fn check(&self, slot: u64, fresh: &[u32]) {
        for (offset, then) in (0..).step_by(4).zip(fresh) {
            let now = self.config(slot, offset);
            match offset {
                COMMAND => assert_eq!((now ^ then) & !COMMAND_WRITABLE, 0, "slot {slot}"),
                BAR1 => assert!(
                    now == *then || now == !u32::from(PORTS_SIZE - 1) | 1,
                    "slot {slot} moved: {now:#x}"
                ),
                BAR0 => assert!(now == *then || now == !(BAR_SIZE - 1), "slot {slot} moved: {now:#x}"),
                // Interrupt line and all from the first capability on may change: not the links between them.
                0x3c => assert_eq!((now ^ then) & !0xff, 0, "slot {slot}"),
                0x40.. => {}
                _ => assert_eq!(now, *then, "slot {slot}, offset {offset:#x}"),
            }
        }
        let mut at = u64::from(self.config(slot, 0x34) & 0xff);
        while at != 0 {
            let (now, then) = (self.config(slot, at), fresh[at as usize / 4]);
            // Only Message Control has bits that can be written in a capability's first four bytes.
            let mask = if then & 0xff == 0x11 { 0x3fff_ffff } else { u32::MAX };
            assert_eq!(now & mask, then & mask, "slot {slot}, capability at {at:#x}");
            at = u64::from(now >> 8 & 0xff);
        }
    }
}

/// A place in configuration space: mostly of a function that is there.
fn config_address(input: &mut Input) -> u64 {
    match input.byte() {
        0..16 => u64::from(input.dword()) % ECAM_SIZE,
        choice => {
            let offset =
                if choice & 1 == 0 { u64::from(input.byte()) } else { u64::from(input.word() & 0xfff) };
            u64::from(choice >> 1) % (FUNCTIONS + 2) * SLOT + offset
        }
    }
}

/// An access to `bus`. What is read is defined: the device filled all of it.
fn access(bus: &Bus, address: u64, input: &mut Input) {
    let width = input.width();
    if input.chance() {
        bus.write(address, &input.take::<8>()[..width]);
        return;
    }
    // Twice, for what was there before must not show; a read that has an effect shows zeros the second time.
    let (mut first, mut second) = ([0xa5; 8], [0x5a; 8]);
    bus.read(address, &mut first[..width]);
    bus.read(address, &mut second[..width]);
    let stale = first[..width].iter().zip(&second[..width]).any(|(a, b)| (*a, *b) == (0xa5, 0x5a));
    assert!(!stale, "a read of {width} bytes at {address:#x} left some as they were");
}

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let machine = Machine::new();
    let header = |slot| (0..0x100).step_by(4).map(|offset| machine.config(slot, offset)).collect();
    let fresh: Vec<Vec<u32>> = (0..=FUNCTIONS).map(header).collect();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0 | 1 => access(&machine.memory, ECAM + config_address(&mut input), &mut input),
            2 => {
                // Configuration mechanism #1 by the book.
                let address = config_address(&mut input);
                let register = address >> 12 << 8 | address & 0xfc | 1 << 31;
                let register = u32::try_from(register).expect("one bus");
                machine.ports.write(PORTS_BASE, &register.to_le_bytes());
                access(&machine.ports, PORTS_BASE + 4 + (address & 3), &mut input);
            }
            3 => {
                // The ports of configuration mechanism #1, or of a function.
                let choice = input.byte();
                let port =
                    u64::from(PORTS) + u64::from(input.word()) % (u64::from(PORTS_SIZE) * (FUNCTIONS + 1));
                let port = if choice & 8 == 0 { PORTS_BASE + u64::from(choice & 7) } else { port };
                access(&machine.ports, port, &mut input);
            }
            4 => {
                // Straddling the end of one BAR, too.
                let offset = u64::from(input.dword()) % (u64::from(BAR_SIZE) * FUNCTIONS);
                access(&machine.memory, u64::from(BARS) + offset, &mut input);
            }
            5 | 6 => {
                // A structure of a BAR: registers, ISR, device configuration, notifications, MSI-X table, pending bits.
                let choice = input.byte();
                let bar = u64::from(BARS) + u64::from(BAR_SIZE) * (u64::from(choice & 0xf) % FUNCTIONS);
                let offset = 0x1000 * u64::from((choice >> 4) % 6) + u64::from(input.byte());
                access(&machine.memory, bar + offset, &mut input);
            }
            _ => {
                let slot = u64::from(input.byte()) % (FUNCTIONS + 1);
                machine.check(slot, &fresh[slot as usize]);
            }
        }
    }
    (0..).zip(&fresh).for_each(|(slot, fresh)| machine.check(slot, fresh));
    // Slots without a function, and functions that none has.
    for slot in FUNCTIONS + 1..32 {
        assert_eq!(machine.config(slot, 0), u32::MAX);
    }
    assert_eq!(machine.config(1, 0x1000), u32::MAX);
    // After a reset of the bus everything is as it was, and an honest driver gets its device.
    for ((slot, function), bar) in (1..).zip(&machine.functions).zip((BARS..).step_by(BAR_SIZE as usize)) {
        function.reset();
        let now: Vec<u32> = header(slot);
        assert_eq!(now, fresh[slot as usize], "slot {slot} after a reset");
        for written in [status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER] {
            machine.memory.write(u64::from(bar) + common::DEVICE_STATUS, &[written]);
        }
        let mut read = [0xa5];
        machine.memory.read(u64::from(bar) + common::DEVICE_STATUS, &mut read);
        assert_eq!(read, [status::ACKNOWLEDGE | status::DRIVER]);
    }
}
