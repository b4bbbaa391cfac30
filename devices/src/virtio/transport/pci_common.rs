//! The common configuration structure of virtio over PCI (virtio 1.2 §4.1.4.3), decoded.
//!
//! Every field is accessed in its own width, 64-bit ones in two halves (§4.1.3.1); other accesses read zeros and write nothing.

use super::super::spec::pci::common as reg;
use super::core::{Core, Half};
use super::pci::PciSignal;
use super::rings::{Area, QueueSetup};

/// The 32-bit words of the ring addresses.
const AREAS: [(u64, Area, Half); 6] = [
    (reg::QUEUE_DESC, Area::Descriptors, Half::Low),
    (reg::QUEUE_DESC + 4, Area::Descriptors, Half::High),
    (reg::QUEUE_DRIVER, Area::Driver, Half::Low),
    (reg::QUEUE_DRIVER + 4, Area::Driver, Half::High),
    (reg::QUEUE_DEVICE, Area::Device, Half::Low),
    (reg::QUEUE_DEVICE + 4, Area::Device, Half::High),
];

fn area(offset: u64) -> Option<(Area, Half)> {
    AREAS.iter().find(|(at, ..)| *at == offset).map(|(_, area, half)| (*area, *half))
}

/// Answers a read.
pub(super) fn read(core: &Core<PciSignal>, signal: &PciSignal, offset: u64, data: &mut [u8]) {
    match data.len() {
        1 => data[0] = read_u8(core, offset),
        2 => data.copy_from_slice(&read_u16(core, signal, offset).to_le_bytes()),
        4 => data.copy_from_slice(&read_u32(core, offset).to_le_bytes()),
        _ => data.fill(0),
    }
}

fn read_u8(core: &Core<PciSignal>, offset: u64) -> u8 {
    match offset {
        reg::DEVICE_STATUS => core.status(),
        reg::CONFIG_GENERATION => core.config_generation().to_le_bytes()[0],
        _ => 0,
    }
}

fn read_u16(core: &Core<PciSignal>, signal: &PciSignal, offset: u64) -> u16 {
    let queue = core.queue();
    match offset {
        reg::CONFIG_MSIX_VECTOR => signal.config_vector(),
        reg::NUM_QUEUES => core.queue_count(),
        reg::QUEUE_SELECT => u16::try_from(core.queue_select).unwrap_or(u16::MAX),
        // Size 0: there is no such queue.
        reg::QUEUE_SIZE => queue.map_or(0, |queue| queue.size),
        reg::QUEUE_MSIX_VECTOR => signal.queue_vector(core.queue_select),
        reg::QUEUE_ENABLE => queue.map_or(0, |queue| u16::from(queue.ready)),
        reg::QUEUE_NOTIFY_OFF => queue.and_then(|_| u16::try_from(core.queue_select).ok()).unwrap_or(0),
        _ => 0,
    }
}

fn read_u32(core: &Core<PciSignal>, offset: u64) -> u32 {
    let at =
        |(area, half): (Area, Half)| core.queue().map_or(0, |queue: &QueueSetup| half.of(queue.area(area)));
    match offset {
        reg::DEVICE_FEATURE_SELECT => core.device_features_select,
        reg::DEVICE_FEATURE => core.device_features(),
        reg::DRIVER_FEATURE_SELECT => core.driver_features_select,
        reg::DRIVER_FEATURE => core.driver_features(),
        _ => area(offset).map_or(0, at),
    }
}

/// Takes a write.
pub(super) fn write(core: &mut Core<PciSignal>, signal: &PciSignal, offset: u64, data: &[u8]) {
    match *data {
        [value] if offset == reg::DEVICE_STATUS => core.set_status(value),
        [low, high] => write_u16(core, signal, offset, u16::from_le_bytes([low, high])),
        [a, b, c, d] => write_u32(core, offset, u32::from_le_bytes([a, b, c, d])),
        _ => {}
    }
}

fn write_u16(core: &mut Core<PciSignal>, signal: &PciSignal, offset: u64, value: u16) {
    match offset {
        reg::CONFIG_MSIX_VECTOR => signal.set_config_vector(value),
        reg::QUEUE_SELECT => core.queue_select = u32::from(value),
        reg::QUEUE_SIZE => core.set_queue_size(u32::from(value)),
        reg::QUEUE_MSIX_VECTOR => signal.set_queue_vector(core.queue_select, value),
        // Only a reset disables a queue (§4.1.4.3.2).
        reg::QUEUE_ENABLE if value == 1 => core.set_queue_ready(true),
        _ => {}
    }
}

fn write_u32(core: &mut Core<PciSignal>, offset: u64, value: u32) {
    match offset {
        reg::DEVICE_FEATURE_SELECT => core.device_features_select = value,
        reg::DRIVER_FEATURE_SELECT => core.driver_features_select = value,
        reg::DRIVER_FEATURE => core.want_features(value),
        _ => {
            if let Some((area, half)) = area(offset) {
                core.set_queue_area(area, half, value);
            }
        }
    }
}
