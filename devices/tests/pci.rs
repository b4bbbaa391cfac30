//! What a virtio function on PCI shows beyond what both transports share (virtio 1.2 §4.1, PCI Local Bus 3.0 §6.8.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::bus::BusDevice;
use devices::mem::{GuestAddress, GuestMemoryMmap};
use devices::pci::root::{Bar, PciBars, PciEcam, PciFunction, PciRoot};
use devices::testing::fake::{CONFIG, FEATURES, FakeDevice, Probe};
use devices::testing::owner::InlineOwner;
use devices::testing::transport::{
    BAR, CountingSink, PCI_DEVICE, PCI_MSIX_CONTROL, PCI_TABLE, PLACE, QueueLayout, TransportDriver, Via,
};
use devices::virtio::spec::{mmio, pci as spec, pci::common};
use devices::virtio::transport::mmio::VENDOR;
use devices::virtio::transport::pci::{PORTS_SIZE, PciTransport, notify_offset, notify_port, vector_count};

const GOOD: QueueLayout = QueueLayout { size: 16, descriptors: 0x1_0000, driver: 0x1_1000, device: 0x1_2000 };
const PENDING: u64 = 0x5000;
const ENABLE: u16 = 0x8000;
const MASK_ALL: u16 = 0x4000;

fn driver(via: Via) -> (TransportDriver, Probe) {
    let ram =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1_0000), 0x1_0000)]).expect("small and disjoint");
    let (device, probe, _) = FakeDevice::new();
    (TransportDriver::new(via, device, Arc::new(ram)), probe)
}

/// A running device with two queues, its interrupts counted from here on.
fn running() -> (TransportDriver, Probe, [u64; 3]) {
    let (driver, probe) = driver(Via::Pci);
    assert!(driver.initialise(FEATURES, &[GOOD, GOOD]));
    let counts = delivered(&driver);
    (driver, probe, counts)
}

fn delivered(driver: &TransportDriver) -> [u64; 3] {
    let sink = driver.sink().expect("over PCI");
    [0, 1, 2].map(|vector| sink.delivered(vector))
}

fn mask(driver: &TransportDriver, vector: u64, masked: u32) {
    driver.window().write(PCI_TABLE + 16 * vector + 12, &masked.to_le_bytes());
}

fn control(driver: &TransportDriver, control: u16) {
    driver.function().expect("over PCI").config_write(PCI_MSIX_CONTROL, &control.to_le_bytes());
}

fn pending(driver: &TransportDriver) -> u64 {
    let mut bits = [0; 8];
    driver.window().read(PENDING, &mut bits);
    u64::from_le_bytes(bits)
}

fn config_u32(function: &dyn PciFunction, offset: u16) -> u32 {
    let mut data = [0; 4];
    function.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn u16_at(driver: &TransportDriver, offset: u64) -> u16 {
    let mut data = [0; 2];
    driver.window().read(offset, &mut data);
    u16::from_le_bytes(data)
}

/// Offsets of the virtio capabilities by type, in their order.
fn virtio_caps(function: &dyn PciFunction) -> BTreeMap<u8, Vec<u16>> {
    let mut caps: BTreeMap<u8, Vec<u16>> = BTreeMap::new();
    let mut at = config_u32(function, 0x34).to_le_bytes()[0];
    while at != 0 {
        let [id, next, _len, kind] = config_u32(function, u16::from(at)).to_le_bytes();
        if id == 0x09 {
            caps.entry(kind).or_default().push(u16::from(at));
        }
        at = next;
    }
    caps
}

#[test]
fn a_function_says_what_it_is_through_the_root() {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("small");
    let sink = CountingSink::new(vector_count(2));
    let owner = Box::new(InlineOwner::new());
    let function = Arc::new(PciTransport::new(FakeDevice::new().0, Arc::new(ram), owner, sink, PLACE));
    let root = PciRoot::new();
    assert_eq!(root.add(function), Ok(1));
    let ecam = PciEcam::new(Arc::new(root));
    let read = |offset: u64| {
        let mut data = [0; 4];
        ecam.read((1 << 15) + offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(read(0x00), 0x1044_1af4);
    assert_eq!(read(0x08), 0x00ff_0001);
    assert_eq!([read(0x10), read(0x14)], [BAR, u32::from(PLACE.ports) | 1]);
    assert_eq!(read(0x2c), 0x1044_1af4);
    assert_eq!(read(0x3c) & 0xff00, 0, "no interrupt pin");
    assert_eq!(read(0x100), 0, "no extended capability");
}

#[test]
fn the_capabilities_lead_to_every_structure() {
    let (driver, _) = driver(Via::Pci);
    let function = driver.function().expect("over PCI");
    let caps = virtio_caps(function);
    let kinds = [spec::CAP_COMMON, spec::CAP_NOTIFY, spec::CAP_ISR, spec::CAP_DEVICE, spec::CAP_PCI_CFG];
    assert!(caps.keys().eq(&kinds));
    // BAR and offset of each.
    let places = |kind: u8| -> Vec<_> {
        let place =
            |cap: &u16| (config_u32(function, cap + 4) & 0xff, u64::from(config_u32(function, cap + 8)));
        caps[&kind].iter().map(place).collect()
    };
    assert_eq!([places(spec::CAP_COMMON), places(spec::CAP_DEVICE)], [[(0, 0)], [(0, PCI_DEVICE)]]);
    // Ports first: that is what a driver is to prefer (§4.1.4).
    assert_eq!(places(spec::CAP_NOTIFY), [(1, 0), (0, notify_offset(0))]);
    let strides: Vec<_> = caps[&spec::CAP_NOTIFY].iter().map(|cap| config_u32(function, cap + 16)).collect();
    let by_port = notify_port(1).map(u32::from).expect("a port");
    let by_memory = u32::try_from(notify_offset(1) - notify_offset(0)).expect("near");
    assert_eq!(strides, [by_port, by_memory]);
    assert_eq!([notify_port(63), notify_port(64)], [Some(PORTS_SIZE - 2), None]);
    assert_eq!(config_u32(function, 0x40) & 0xff, 0x11);
    assert_eq!(config_u32(function, 0x40) >> 16, u32::from(ENABLE) | 2, "three vectors, enabled by the rig");
    assert_eq!([config_u32(function, 0x44), config_u32(function, 0x48)], [0x4000, 0x5000]);
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar() {
    let (driver, _) = driver(Via::Pci);
    let function = driver.function().expect("over PCI");
    let cap = virtio_caps(function)[&spec::CAP_PCI_CFG][0];
    let point = |offset: u32, length: u32| {
        function.config_write(cap + 8, &offset.to_le_bytes());
        function.config_write(cap + 12, &length.to_le_bytes());
    };
    point(u32::try_from(PCI_DEVICE).expect("in the BAR"), 4);
    assert_eq!(config_u32(function, cap + 16).to_le_bytes(), CONFIG[..4]);
    point(u32::try_from(common::DEVICE_STATUS).expect("in the BAR"), 1);
    function.config_write(cap + 16, &[1]);
    assert_eq!(driver.status(), 1);
    // No such BAR, odd lengths and places, and the end: nothing is reached.
    for (bar, offset, length) in
        [(2u8, 0, 4), (0, 0, 3), (0, 0, 8), (0, 2, 4), (0, 0x8000, 4), (0, u32::MAX, 1), (1, 0x80, 2)]
    {
        function.config_write(cap + 4, &[bar]);
        point(offset, length);
        function.config_write(cap + 16, &[0, 0, 0, 0]);
        assert_eq!(config_u32(function, cap + 16), 0);
    }
    assert_eq!(driver.status(), 1);
}

#[test]
fn a_queue_is_kicked_by_port_as_by_memory_and_through_the_window() {
    let (driver, _probe, [config, first, second]) = running();
    let function = driver.function().expect("over PCI");
    let ports = function.bar(Bar::Ports).expect("it has ports");
    let port = |queue| u64::from(notify_port(queue).expect("a port"));
    // Of any width; what is no queue's, or between two, kicks nobody.
    ports.write(port(0), &[0]);
    ports.write(port(1), &[1, 0]);
    ports.write(port(1), &[1, 0, 0, 0]);
    ports.write(port(0) + 1, &[0]);
    ports.write(port(2), &[2, 0]);
    ports.write(port(63), &[63, 0]);
    assert_eq!(delivered(&driver), [config, first + 1, second + 2]);
    let mut read = [0xa5; 2];
    ports.read(0, &mut read);
    assert_eq!(read, [0, 0]);
    let cap = virtio_caps(function)[&spec::CAP_PCI_CFG][0];
    function.config_write(cap + 4, &[1]);
    function.config_write(cap + 8, &2u32.to_le_bytes());
    function.config_write(cap + 12, &2u32.to_le_bytes());
    function.config_write(cap + 16, &[1, 0]);
    assert_eq!(delivered(&driver), [config, first + 1, second + 3]);
}

#[test]
fn the_ports_of_all_functions_lie_side_by_side() {
    let (driver, _probe, [config, first, second]) = running();
    let Some(function) = driver.shared_function() else { panic!("over PCI") };
    let root = Arc::new(PciRoot::new());
    assert_eq!(root.add(function), Ok(1));
    let ports = PciBars::new(Arc::clone(&root), Bar::Ports, PORTS_SIZE.into());
    assert_eq!(ports.size(), 32 * u64::from(PORTS_SIZE));
    ports.write(u64::from(PORTS_SIZE) + 2, &[1, 0]);
    ports.write(2, &[1, 0]);
    ports.write(u64::from(PORTS_SIZE) * 2, &[0, 0]);
    assert_eq!(delivered(&driver), [config, first, second + 1]);
    let mut read = [0; 2];
    ports.read(0, &mut read);
    assert_eq!(read, [0xff, 0xff], "the host bridge has none");
}

#[test]
fn a_vector_triggered_while_masked_is_pending_and_delivered_once_it_is_unmasked() {
    let (driver, _probe, [config, first, second]) = running();
    mask(&driver, 1, 1);
    driver.kick(0);
    driver.kick(0);
    driver.kick(1);
    assert_eq!(delivered(&driver), [config, first, second + 1]);
    assert_eq!(pending(&driver), 0b10);
    mask(&driver, 1, 0);
    assert_eq!(delivered(&driver), [config, first + 1, second + 1]);
    assert_eq!(pending(&driver), 0);
}

#[test]
fn masking_the_function_or_disabling_msix_holds_every_vector_back() {
    for held in [ENABLE | MASK_ALL, 0, MASK_ALL] {
        let (driver, _probe, [config, first, second]) = running();
        control(&driver, held);
        driver.kick(0);
        driver.kick(1);
        assert_eq!(delivered(&driver), [config, first, second]);
        assert_eq!(pending(&driver), 0b110);
        control(&driver, ENABLE);
        assert_eq!(delivered(&driver), [config, first + 1, second + 1]);
    }
}

#[test]
fn a_reset_forgets_vectors_and_what_is_pending_but_not_the_table() {
    let (driver, _probe, counts) = running();
    mask(&driver, 1, 1);
    driver.kick(0);
    driver.reset();
    assert_eq!(pending(&driver), 0);
    mask(&driver, 1, 0);
    assert_eq!(delivered(&driver), counts);
    driver.select(0);
    assert_eq!(u16_at(&driver, common::QUEUE_MSIX_VECTOR), spec::NO_VECTOR);
    assert_eq!(u16_at(&driver, common::CONFIG_MSIX_VECTOR), spec::NO_VECTOR);
    let mut message = [0; 8];
    driver.window().read(PCI_TABLE, &mut message);
    assert_eq!(u64::from_le_bytes(message), 0xfee0_0000);
}

#[test]
fn the_sink_hears_of_a_route_only_when_it_matters() {
    let (driver, _probe, _) = running();
    let routes = || driver.sink().expect("over PCI").routes();
    let before = routes();
    mask(&driver, 1, 0);
    assert_eq!(routes(), before, "nothing changed");
    mask(&driver, 1, 1);
    driver.window().write(PCI_TABLE + 16, &0xfee0_1000u64.to_le_bytes());
    assert_eq!(routes(), before + 1, "changing a masked vector waits for the unmask");
    mask(&driver, 1, 0);
    assert_eq!(routes(), before + 2);
    driver.window().write(PCI_TABLE + 16, &0xfee0_0000u64.to_le_bytes());
    assert_eq!(routes(), before + 3, "moving a live vector takes effect at once");
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none_and_are_never_delivered() {
    let (driver, probe, counts) = running();
    driver.select(0);
    for vector in [3u16, 4, 0x7ff, 0xfffe, spec::NO_VECTOR] {
        driver.window().write(common::QUEUE_MSIX_VECTOR, &vector.to_le_bytes());
        driver.window().write(common::CONFIG_MSIX_VECTOR, &vector.to_le_bytes());
        assert_eq!(u16_at(&driver, common::QUEUE_MSIX_VECTOR), spec::NO_VECTOR);
        assert_eq!(u16_at(&driver, common::CONFIG_MSIX_VECTOR), spec::NO_VECTOR);
    }
    driver.kick(0);
    probe.history().interrupt.as_ref().expect("it runs").config();
    assert_eq!(delivered(&driver), counts);
}

#[test]
fn queues_may_share_a_vector() {
    let (driver, _probe, [config, first, second]) = running();
    for queue in [0, 1] {
        driver.select(queue);
        driver.window().write(common::QUEUE_MSIX_VECTOR, &1u16.to_le_bytes());
        driver.kick(queue);
    }
    assert_eq!(delivered(&driver), [config, first + 2, second]);
}

#[test]
fn a_driver_without_msix_finds_used_buffers_in_the_isr_byte_once() {
    let (driver, _probe, _) = running();
    control(&driver, 0);
    driver.kick(0);
    let isr = || {
        let mut data = [0; 1];
        driver.window().read(0x1000, &mut data);
        data[0]
    };
    assert_eq!([isr(), isr()], [1, 0]);
}

#[test]
fn a_reset_of_the_bus_masks_and_blanks_the_table() {
    let (driver, _probe, _) = running();
    driver.machine_reset();
    let mut entry = [0; 16];
    for (at, half) in (0..).step_by(8).zip(entry.chunks_mut(8)) {
        driver.window().read(PCI_TABLE + at, half);
    }
    assert_eq!(u128::from_le_bytes(entry), 1 << 96);
    assert_eq!(config_u32(driver.function().expect("over PCI"), 0x40) >> 16, 2, "MSI-X is not enabled");
    assert_eq!(config_u32(driver.function().expect("over PCI"), 0x10), BAR);
}

#[test]
fn an_mmio_window_says_what_it_is_and_has_no_shared_memory() {
    let (driver, _) = driver(Via::Mmio);
    let read = |offset| {
        let mut data = [0; 4];
        driver.window().read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    let identity = [mmio::MAGIC_VALUE, mmio::VERSION_REG, mmio::DEVICE_ID, mmio::VENDOR_ID].map(read);
    assert_eq!(identity, [0x7472_6976, 2, 4, VENDOR]);
    assert_eq!([read(mmio::SHM_LEN_LOW), read(mmio::SHM_LEN_HIGH)], [u32::MAX; 2]);
}
