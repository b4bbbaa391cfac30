//! The ACPI tables: a hardware-reduced platform (ACPI 6.4 §4.1) with a power button, S5, a reset register and whatever
//! devices the machine has. Hardware-reduced spares the guest its probing of timers, PICs and clocks that are not there.
//!
//! Four ports carry all of it: sleep control, sleep status, events and reset, from [`layout::ACPI_PORT`] on.

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, MethodCall, Name, Notify, ONE, OpRegion, OpRegionSpace, Package,
    Path, ResourceTemplate, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;

mod pci;

const OEM: [u8; 6] = *b"YUN   ";
const TABLE: [u8; 8] = *b"YUNVM   ";
const REVISION: u32 = 1;

/// How many ports there are.
pub const PORTS: u64 = 4;
/// Offset of the sleep control register from [`layout::ACPI_PORT`].
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the event register: one bit per event, cleared by reading.
pub const EVENTS: u64 = 2;
/// Offset of the reset register.
pub const RESET: u64 = 3;
/// What the guest writes to reset.
pub const RESET_VALUE: u8 = 1;
/// What the guest writes to the sleep control register for S5: SLP_TYP 5 and SLP_EN (§4.8.3.7).
pub const SLEEP_S5: u8 = (5 << 2) | (1 << 5);
/// The event bit of the power button.
pub const EVENT_POWER_BUTTON: u8 = 1;
/// The event bit of the PCI slots: a function has appeared, or is wanted back.
pub const EVENT_PCI: u8 = 2;

/// A virtio-mmio device for the guest to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// First address of its window.
    pub base: u64,
    /// Its interrupt.
    pub gsi: u32,
}

/// What the tables describe.
#[derive(Debug, Clone, Default)]
pub struct Platform {
    /// Number of vCPUs; APIC IDs are 0 upward.
    pub vcpus: u8,
    /// virtio-mmio devices.
    pub mmio: Vec<MmioDevice>,
    /// Whether there is a PCI bus.
    pub pci: bool,
}

/// The tables do not fit their room.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("ACPI tables need {need} bytes of {room}")]
pub struct TablesTooLarge {
    need: u64,
    room: u64,
}

/// Collects bytes.
struct Bytes8(Vec<u8>);

impl AmlSink for Bytes8 {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Bytes8(Vec::new());
    table.to_aml_bytes(&mut sink);
    sink.0
}

fn port(offset: u64) -> u16 {
    layout::ACPI_PORT + u16::try_from(offset).expect("four ports")
}

fn register(offset: u64) -> GAS {
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port(offset)))
}

fn virtio_mmio(index: usize, device: MmioDevice) -> Vec<u8> {
    let base = u32::try_from(device.base).expect("windows lie in the 32-bit hole");
    let uid = u32::try_from(index).expect("few devices");
    bytes(&Device::new(
        Path::new(&format!("_SB_.VR{index:02X}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &uid),
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base, u32::try_from(layout::MMIO_WINDOW).expect("one page")),
                    &Interrupt::new(true, true, false, false, device.gsi),
                ]),
            ),
        ],
    ))
}

fn isa_device(name: &str, hid: &dyn Aml, ports: &[(u16, u8)], gsi: Option<u32>) -> Vec<u8> {
    let io: Vec<IO> = ports.iter().map(|&(base, len)| IO::new(base, base, 1, len)).collect();
    let interrupt = gsi.map(|gsi| Interrupt::new(true, true, false, false, gsi));
    let mut resources: Vec<&dyn Aml> = io.iter().map(|io| io as &dyn Aml).collect();
    resources.extend(interrupt.iter().map(|interrupt| interrupt as &dyn Aml));
    bytes(&Device::new(
        Path::new(&format!("_SB_.{name}")),
        vec![
            &Name::new("_HID".into(), hid),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_STA".into(), &0x0fu8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    ))
}

/// AML that is written already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Does `then` if any of `bits` is set in `word`.
fn if_set(word: &dyn Aml, bits: &dyn Aml, then: &dyn Aml) -> Raw {
    // A target of zero is none.
    Raw(bytes(&If::new(&And::new(&ZERO, word, bits), vec![then])))
}

/// The generic event device (§5.6.9): its interrupt runs `_EVT`, which reads and clears the event register.
fn event_device(pci: bool) -> Vec<u8> {
    let (register, events) = (Path::new("EVTS"), Local(0));
    let (button, slots) = (Path::new("\\_SB_.PWRB"), MethodCall::new("\\_SB_.PCI0.PCNT".into(), vec![]));
    let take = Store::new(&events, &register);
    let press = if_set(&events, &EVENT_POWER_BUTTON, &Notify::new(&button, &0x80u8));
    let look = if_set(&events, &EVENT_PCI, &slots);
    let mut handler: Vec<&dyn Aml> = vec![&take, &press];
    if pci {
        handler.push(&look);
    }
    let mut aml = bytes(&Device::new(
        "_SB_.PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
    ));
    aml.extend(bytes(&Device::new(
        "_SB_.GEVT".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Interrupt::new(true, true, false, false, layout::ACPI_GSI)]),
            ),
            &OpRegion::new("EREG".into(), OpRegionSpace::SystemIO, &port(EVENTS), &1u8),
            &Field::new(
                "EREG".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 8)],
            ),
            &Method::new("_EVT".into(), 1, true, handler),
        ],
    )));
    aml
}

fn dsdt(platform: &Platform) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    let s5 = Name::new("_S5_".into(), &Package::new(vec![&5u8, &ZERO, &ZERO, &ZERO]));
    dsdt.append_slice(&bytes(&s5));
    dsdt.append_slice(&event_device(platform.pci));
    dsdt.append_slice(&isa_device(
        "COM1",
        &EISAName::new("PNP0501"),
        &[(layout::COM1_PORT, 8)],
        Some(layout::COM1_GSI),
    ));
    dsdt.append_slice(&isa_device(
        "PS2_",
        &EISAName::new("PNP0303"),
        &[(layout::I8042_PORT, 1), (layout::I8042_PORT + 4, 1)],
        Some(layout::I8042_GSI),
    ));
    dsdt.append_slice(&isa_device("PEVT", &"QEMU0001", &[(layout::PVPANIC_PORT, 1)], None));
    for (index, &device) in platform.mmio.iter().enumerate() {
        dsdt.append_slice(&virtio_mmio(index, device));
    }
    if platform.pci {
        dsdt.append_slice(&pci::root());
        dsdt.append_slice(&pci::slots());
    }
    dsdt
}

fn fadt(dsdt: u64) -> Vec<u8> {
    // IAPC_BOOT_ARCH (§5.2.9.3): there is an 8042, no VGA, no CMOS clock.
    const HAS_8042: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;
    const NO_CMOS_RTC: u16 = 1 << 5;
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .dsdt_64(dsdt);
    fadt.iapc_boot_arch = (HAS_8042 | NO_VGA | NO_CMOS_RTC).into();
    fadt.reset_reg = register(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(SLEEP_CONTROL);
    fadt.sleep_status_reg = register(SLEEP_STATUS);
    bytes(&fadt.finalize())
}

fn madt(vcpus: u8) -> Vec<u8> {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(layout::LAPIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    bytes(&madt)
}

/// The tables as they lie from [`layout::ACPI_TABLES`] on: the RSDP first.
#[must_use]
pub fn tables(platform: &Platform) -> Vec<u8> {
    let base = layout::ACPI_TABLES.0;
    let mut out = vec![0u8; Rsdp::len().next_multiple_of(16)];
    let mut put = |table: &[u8]| {
        let at = base + out.len() as u64;
        out.extend_from_slice(table);
        out.resize(out.len().next_multiple_of(16), 0);
        at
    };
    let dsdt_at = put(&bytes(&dsdt(platform)));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(put(&fadt(dsdt_at)));
    xsdt.add_entry(put(&madt(platform.vcpus)));
    if platform.pci {
        let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
        mcfg.add_ecam(layout::ECAM, 0, 0, 0);
        xsdt.add_entry(put(&bytes(&mcfg)));
    }
    let xsdt_at = put(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt_at));
    out[..rsdp.len()].copy_from_slice(&rsdp);
    out
}

/// Writes the tables into guest RAM and says where the RSDP is.
///
/// # Errors
/// [`TablesTooLarge`] if there are more devices than the room allows; RAM is untouched then.
///
/// # Panics
/// If RAM does not reach the room for tables: the smallest guest has more.
pub fn write(ram: &GuestMemoryMmap<()>, platform: &Platform) -> Result<GuestAddress, TablesTooLarge> {
    let tables = tables(platform);
    let (need, room) = (tables.len() as u64, layout::ACPI_TABLES_END - layout::ACPI_TABLES.0);
    if need > room {
        return Err(TablesTooLarge { need, room });
    }
    ram.write_slice(&tables, layout::ACPI_TABLES).expect("the first MiB is RAM");
    Ok(layout::ACPI_TABLES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }
    fn u64_at(bytes: &[u8], at: usize) -> usize {
        usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap()
    }
    fn sums_to_zero(bytes: &[u8]) -> bool {
        bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
    }

    #[test]
    fn every_table_is_reachable_from_the_rsdp_and_its_checksum_holds() {
        let base = usize::try_from(layout::ACPI_TABLES.0).unwrap();
        for (pci, count) in [(false, 2), (true, 3)] {
            let mmio = vec![MmioDevice { base: layout::VIRTIO_MMIO, gsi: 5 }; if pci { 0 } else { 18 }];
            let out = tables(&Platform { vcpus: 32, mmio, pci });
            assert_eq!(&out[..8], b"RSD PTR ");
            assert!(sums_to_zero(&out[..20]) && sums_to_zero(&out[..36]));
            let xsdt = &out[u64_at(&out, 24) - base..];
            let xsdt = &xsdt[..u32_at(xsdt, 4)];
            assert!(xsdt.starts_with(b"XSDT") && sums_to_zero(xsdt));
            let entries = (xsdt.len() - 36) / 8;
            assert_eq!(entries, count);
            for entry in 0..entries {
                let table = &out[u64_at(xsdt, 36 + 8 * entry) - base..];
                let table = &table[..u32_at(table, 4)];
                assert!(sums_to_zero(table), "{:?}", &table[..4]);
                if table.starts_with(b"FACP") {
                    let dsdt = &out[u64_at(table, 140) - base..];
                    assert!(dsdt.starts_with(b"DSDT") && sums_to_zero(&dsdt[..u32_at(dsdt, 4)]));
                }
            }
            assert!(out.len() as u64 <= layout::ACPI_TABLES_END - layout::ACPI_TABLES.0);
        }
    }
}
