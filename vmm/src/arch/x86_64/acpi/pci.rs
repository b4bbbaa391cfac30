//! The PCI bus in the ACPI tables: the root bridge with its memory and ports, and slots whose functions come and go.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, Memory32Fixed, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace,
    Path, ResourceTemplate, Scope, Store, ZERO,
};
use devices::pci::hotplug;
use devices::pci::root::SLOTS;

use super::super::layout;
use super::{bytes, if_set};

/// `Notify` of a device check (ACPI 6.4 §5.6.6): something has come, look.
const DEVICE_CHECK: u8 = 1;
/// `Notify` of an eject request.
const EJECT_REQUEST: u8 = 3;

/// The root bridge, and what reserves its configuration space.
pub(super) fn root() -> Vec<u8> {
    let memory = layout::PCI_MEMORY;
    let (first, last) = (
        u32::try_from(memory.start).expect("in the 32-bit hole"),
        u32::try_from(memory.end - 1).expect("in the 32-bit hole"),
    );
    let mut aml = bytes(&Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0u16),
                    &AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None),
                    &AddressSpace::new_io(layout::PCI_PORTS.start, layout::PCI_PORTS.end - 1, None),
                ]),
            ),
        ],
    ));
    // Linux uses the ECAM only if a motherboard resource reserves it.
    aml.extend(bytes(&Device::new(
        "_SB_.MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(
                    true,
                    u32::try_from(layout::ECAM).expect("in the 32-bit hole"),
                    u32::try_from(layout::ECAM_SIZE).expect("one bus"),
                )]),
            ),
        ],
    )));
    aml
}

/// The slots of devices, and `PCNT`, which tells the guest of those that changed (see [`hotplug`] for the registers). A guest has
/// a name for each slot from the start, whatever is in it: it looks for names only then.
pub(super) fn slots() -> Vec<u8> {
    let slots: Vec<Slot> = (1..SLOTS).filter_map(|slot| u8::try_from(slot).ok()).map(Slot).collect();
    let (appeared, wanted) = (Path::new("APPD"), Path::new("WNTD"));
    let told: Vec<_> = slots.iter().map(Slot::told).collect();
    let mut children = bytes(&OpRegion::new(
        "HPRG".into(),
        OpRegionSpace::SystemIO,
        &layout::PCI_HOTPLUG_PORT,
        &u8::try_from(hotplug::SIZE).expect("a few ports"),
    ));
    children.extend(bytes(&Field::new(
        "HPRG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        [*b"APPD", *b"WNTD", *b"EJCT"].map(|name| FieldEntry::Named(name, 32)).into(),
    )));
    slots.iter().for_each(|slot| children.extend(slot.device()));
    let tell = |told: &[super::Raw]| {
        bytes(&Method::new("TELL".into(), 2, true, told.iter().map(|told| told as &dyn Aml).collect()))
    };
    children.extend(tell(&told));
    children.extend(bytes(&Method::new(
        "PCNT".into(),
        0,
        true,
        vec![
            &MethodCall::new("TELL".into(), vec![&appeared, &DEVICE_CHECK]),
            &MethodCall::new("TELL".into(), vec![&wanted, &EJECT_REQUEST]),
        ],
    )));
    Scope::raw("\\_SB_.PCI0".into(), children)
}

/// A slot by its device number.
struct Slot(u8);

impl Slot {
    fn name(&self) -> Path {
        Path::new(&format!("S{:03}", self.0))
    }

    /// The bit of the slot in the registers.
    fn bit(&self) -> u32 {
        1 << self.0
    }

    fn device(&self) -> Vec<u8> {
        let ejected = Path::new("EJCT");
        bytes(&Device::new(
            self.name(),
            vec![
                &Name::new("_ADR".into(), &(u32::from(self.0) << 16)),
                &Name::new("_SUN".into(), &self.0),
                &Method::new("_EJ0".into(), 1, false, vec![&Store::new(&ejected, &self.bit())]),
            ],
        ))
    }

    /// A line of `TELL(slots, what)`.
    fn told(&self) -> super::Raw {
        if_set(&Arg(0), &self.bit(), &Notify::new(&self.name(), &Arg(1)))
    }
}
