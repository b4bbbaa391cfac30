//! The little devices of the platform: ACPI's ports, pvpanic and the boot timer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use devices::bus::BusDevice;
use devices::irq::Line;

use super::ended::Reason;
use crate::arch::x86_64::acpi;

/// Called, on a vCPU's thread, when the guest ends itself. May be called more than once; the first reason counts.
pub type OnEnd = Arc<dyn Fn(Reason) + Send + Sync>;

/// ACPI's sleep, event and reset registers (see [`acpi`]).
pub struct AcpiPorts {
    events: AtomicU8,
    line: Arc<dyn Line>,
    on_end: OnEnd,
}

impl AcpiPorts {
    /// `line` is the interrupt of the generic event device.
    #[must_use]
    pub fn new(line: Arc<dyn Line>, on_end: OnEnd) -> Self {
        Self { events: AtomicU8::new(0), line, on_end }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.raise(acpi::EVENT_POWER_BUTTON);
    }

    /// Has the guest look at the registers of PCI slots.
    pub fn pci_slots_changed(&self) {
        self.raise(acpi::EVENT_PCI);
    }

    fn raise(&self, event: u8) {
        self.events.fetch_or(event, Ordering::AcqRel);
        self.line.trigger();
    }
}

impl BusDevice for AcpiPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == acpi::EVENTS {
            data[0] = self.events.swap(0, Ordering::AcqRel);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (acpi::SLEEP_CONTROL, &[acpi::SLEEP_S5]) => (self.on_end)(Reason::PowerOff),
            (acpi::RESET, &[acpi::RESET_VALUE]) => (self.on_end)(Reason::Reboot),
            _ => {}
        }
    }
}

/// pvpanic (QEMU `docs/specs/pvpanic.rst`): a guest's kernel writes what happened to it.
pub struct Pvpanic {
    on_end: OnEnd,
}

impl Pvpanic {
    const PANICKED: u8 = 1 << 0;

    /// A device that reports panics to `on_end`.
    #[must_use]
    pub fn new(on_end: OnEnd) -> Self {
        Self { on_end }
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        data[0] = Self::PANICKED;
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|events| events & Self::PANICKED != 0) {
            (self.on_end)(Reason::Panicked);
        }
    }
}

/// Firecracker's boot timer: a guest writes [`BootTimer::MAGIC`] when its init runs, and the log gets the time.
pub struct BootTimer {
    started: std::time::Instant,
}

impl BootTimer {
    /// What the guest writes.
    pub const MAGIC: u8 = 123;

    /// Counts from now.
    #[must_use]
    pub fn start() -> Self {
        Self { started: std::time::Instant::now() }
    }
}

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset != 0 || data != [Self::MAGIC] {
            return;
        }
        let wall = self.started.elapsed().as_micros();
        let cpu = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
            .map(|time| std::time::Duration::from(time).as_micros())
            .unwrap_or_default();
        log::info!(
            "Guest-boot-time = {wall:>6} us {} ms, {cpu:>6} CPU us {} CPU ms",
            wall / 1000,
            cpu / 1000
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Edges(AtomicU8);
    impl Line for Edges {
        fn trigger(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn recorder() -> (OnEnd, Arc<Mutex<Vec<Reason>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&seen);
        (Arc::new(move |reason| writer.lock().unwrap().push(reason)), seen)
    }

    #[test]
    fn sleep_and_reset_end_the_guest_and_other_values_do_not() {
        let (on_end, seen) = recorder();
        let ports = AcpiPorts::new(Arc::new(Edges::default()), on_end);
        for value in 0..=255 {
            ports.write(acpi::SLEEP_CONTROL, &[value]);
            ports.write(acpi::RESET, &[value]);
            ports.write(acpi::SLEEP_STATUS, &[value]);
        }
        assert_eq!(*seen.lock().unwrap(), [Reason::Reboot, Reason::PowerOff]);
    }

    #[test]
    fn the_power_button_raises_one_edge_and_is_read_once() {
        let edges = Arc::new(Edges::default());
        let ports = AcpiPorts::new(edges.clone(), recorder().0);
        ports.press_power_button();
        assert_eq!(edges.0.load(Ordering::Relaxed), 1);
        let mut data = [0xff];
        ports.read(acpi::EVENTS, &mut data);
        assert_eq!(data, [acpi::EVENT_POWER_BUTTON]);
        ports.read(acpi::EVENTS, &mut data);
        assert_eq!(data, [0]);
    }

    #[test]
    fn pvpanic_offers_panicked_and_takes_nothing_else() {
        let (on_end, seen) = recorder();
        let device = Pvpanic::new(on_end);
        let mut data = [0xff];
        device.read(0, &mut data);
        assert_eq!(data, [1]);
        device.write(0, &[2]);
        assert!(seen.lock().unwrap().is_empty());
        device.write(0, &[1]);
        assert_eq!(*seen.lock().unwrap(), [Reason::Panicked]);
    }
}
