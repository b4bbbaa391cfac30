//! Interrupts that somebody outside of this process raises: an eventfd, an irqfd on it, and a GSI that means a message.
//!
//! ```text
//!   vhost-net ── write ──> eventfd ── irqfd ──> GSI ── routing table ──> message      no thread of ours is woken
//! ```
//! A vector that is masked has no irqfd: its eventfd counts, and KVM looks at that as soon as there is one again.
//! Who is in this process is better off without: `KVM_SIGNAL_MSI` costs no entry of the table, and each change of that
//! is a new table for KVM.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::irq::Eventfd;
use devices::pci::msix::MsixMessage;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_IRQFD_FLAG_DEASSIGN, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_irqfd,
};
use kvm_ioctls::{Cap, VmFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{KvmError, ioctl};

#[allow(missing_docs)] // the macro makes the function public, this module does not
mod ioctls {
    vmm_sys_util::ioctl_iow_nr!(KVM_IRQFD, kvm_bindings::KVMIO, 0x76, kvm_bindings::kvm_irqfd);
}
use ioctls::KVM_IRQFD;

/// Pins of the two PICs together, and of the IOAPIC.
const PIC_PINS: u32 = 16;
const IOAPIC_PINS: u32 = 24;
/// GSIs that may mean messages: more than devices that fit, fewer than KVM takes.
const GSIS: std::ops::Range<u32> = IOAPIC_PINS..1024;

/// The routing table of a virtual machine: the pins, as KVM has them by itself, and the messages of GSIs that are taken.
pub(super) struct Routes {
    fd: Arc<VmFd>,
    messages: Mutex<BTreeMap<u32, MsixMessage>>,
    /// KVM has irqfds and a routing table.
    available: bool,
}

impl Routes {
    pub(super) fn new(fd: Arc<VmFd>) -> Arc<Self> {
        let available = [Cap::Irqfd, Cap::IrqRouting].into_iter().all(|cap| fd.check_extension(cap));
        Arc::new(Self { fd, messages: Mutex::default(), available })
    }

    /// Has a GSI that nobody has taken mean `message`; which.
    fn take(&self, message: MsixMessage) -> Option<u32> {
        let mut messages = lock(&self.messages);
        let gsi = GSIS.clone().find(|gsi| !messages.contains_key(gsi)).filter(|_| self.available)?;
        self.put(&mut messages, gsi, Some(message)).then_some(gsi)
    }

    /// Has `gsi` mean another message.
    fn change(&self, gsi: u32, message: MsixMessage) {
        self.put(&mut lock(&self.messages), gsi, Some(message));
    }

    fn give_back(&self, gsi: u32) {
        self.put(&mut lock(&self.messages), gsi, None);
    }

    /// Whether KVM took it; else all is as it was: a guest may choose a message that KVM refuses.
    fn put(&self, messages: &mut BTreeMap<u32, MsixMessage>, gsi: u32, message: Option<MsixMessage>) -> bool {
        let set = |messages: &mut BTreeMap<_, _>, message| match message {
            Some(message) => messages.insert(gsi, message),
            None => messages.remove(&gsi),
        };
        let before = set(messages, message);
        let result = self.write(messages);
        if let Err(error) = &result {
            log::debug!("{message:x?} of GSI {gsi}: {error}");
            set(messages, before);
        }
        result.is_ok()
    }

    fn write(&self, messages: &BTreeMap<u32, MsixMessage>) -> Result<(), KvmError> {
        let entries: Vec<_> =
            pins().chain(messages.iter().map(|(gsi, message)| route(*gsi, *message))).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| KvmError::TooMany("routing"))?;
        self.fd.set_gsi_routing(&table).map_err(ioctl("KVM_SET_GSI_ROUTING"))
    }

    /// Binds an eventfd to a GSI, or undoes that.
    fn irqfd(&self, eventfd: &Eventfd, gsi: u32, bound: bool) -> bool {
        let flags = if bound { 0 } else { KVM_IRQFD_FLAG_DEASSIGN };
        #[allow(clippy::cast_sign_loss, reason = "an open descriptor is no negative number")]
        let request = kvm_irqfd { fd: eventfd.as_raw_fd() as u32, gsi, flags, ..Default::default() };
        // SAFETY: the ioctl reads the struct, which outlives the call.
        let result = unsafe { ioctl_with_ref(&*self.fd, KVM_IRQFD(), &request) };
        if result < 0 {
            log::error!("KVM_IRQFD of GSI {gsi}: {}", std::io::Error::last_os_error());
        }
        result >= 0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the pins of the chips mean until somebody says otherwise: a table replaces all of it.
fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let entry = |gsi, irqchip, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Default::default()
    };
    let pics = (0..PIC_PINS).map(move |gsi| {
        let chip = if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        entry(gsi, chip, gsi % 8)
    });
    pics.chain((0..IOAPIC_PINS).map(move |gsi| entry(gsi, KVM_IRQCHIP_IOAPIC, gsi)))
}

fn route(gsi: u32, message: MsixMessage) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        #[allow(clippy::cast_possible_truncation, reason = "the two halves")]
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

/// An eventfd that sends a vector's message.
struct Connection {
    vector: u16,
    gsi: u32,
    eventfd: Eventfd,
    /// There is an irqfd.
    bound: bool,
}

/// The eventfds that send messages of one device. None is left when it is dropped.
pub(super) struct Connections {
    routes: Arc<Routes>,
    all: Mutex<Vec<Connection>>,
}

impl Connections {
    pub(super) fn new(routes: Arc<Routes>) -> Self {
        Self { routes, all: Mutex::default() }
    }

    /// Has `eventfd` send `message`, unless it is masked; false if that can't be had.
    pub(super) fn connect(&self, vector: u16, message: MsixMessage, masked: bool, eventfd: &Eventfd) -> bool {
        let Some(gsi) = self.routes.take(message) else { return false };
        if !masked && !self.routes.irqfd(eventfd, gsi, true) {
            self.routes.give_back(gsi);
            return false;
        }
        lock(&self.all).push(Connection { vector, gsi, eventfd: Arc::clone(eventfd), bound: !masked });
        true
    }

    /// Undoes it.
    pub(super) fn disconnect(&self, eventfd: &Eventfd) {
        let mut all = lock(&self.all);
        let (gone, rest) = all.drain(..).partition(|other| Arc::ptr_eq(&other.eventfd, eventfd));
        *all = rest;
        self.undo(gone);
    }

    fn undo(&self, connections: Vec<Connection>) {
        for connection in connections {
            if connection.bound {
                self.routes.irqfd(&connection.eventfd, connection.gsi, false);
            }
            self.routes.give_back(connection.gsi);
        }
    }

    /// `vector` means `message` from now on, and is masked or not.
    pub(super) fn route(&self, vector: u16, message: MsixMessage, masked: bool) {
        for connection in lock(&self.all).iter_mut().filter(|connection| connection.vector == vector) {
            if !masked {
                self.routes.change(connection.gsi, message);
            }
            if connection.bound == masked && self.routes.irqfd(&connection.eventfd, connection.gsi, !masked) {
                connection.bound = !masked;
            }
        }
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        let all = std::mem::take(&mut *lock(&self.all));
        self.undo(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_are_as_kvm_has_them_by_itself() {
        let pins: Vec<_> = pins().collect();
        assert_eq!(pins.len(), 40);
        assert!(pins.iter().all(|entry| entry.type_ == KVM_IRQ_ROUTING_IRQCHIP));
        // SAFETY: the entries are of that type.
        let chip = |at: usize| unsafe { pins[at].u.irqchip };
        assert_eq!((pins[9].gsi, chip(9).irqchip, chip(9).pin), (9, KVM_IRQCHIP_PIC_SLAVE, 1));
        assert_eq!((pins[39].gsi, chip(39).irqchip, chip(39).pin), (23, KVM_IRQCHIP_IOAPIC, 23));
    }
}
