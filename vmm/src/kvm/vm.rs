//! The virtual machine: memory slots, interrupt chips, lines, messages and notify addresses.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use devices::irq::Eventfd;
use devices::mem::Ram;
use devices::pci::msix::{MsixMessage, MsixSink};
use kvm_bindings::{
    KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2, kvm_msi, kvm_pit_config, kvm_reinject_control,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::irqfd::{Connections, Routes};
use super::line::GsiLine;
use super::{KvmError, ioctl};
use crate::arch::x86_64::{cpuid, layout};

#[allow(missing_docs)] // the macro makes the function public, this module does not
mod ioctls {
    vmm_sys_util::ioctl_io_nr!(KVM_REINJECT_CONTROL, kvm_bindings::KVMIO, 0x71);
}
use ioctls::KVM_REINJECT_CONTROL;

/// A virtual machine without vCPUs: RAM mapped, interrupt chips in the kernel.
pub struct Vm {
    // Declared before `ram`: KVM lets go of the memory slots before RAM can be unmapped.
    fd: Arc<VmFd>,
    routes: Arc<Routes>,
    kvm: Kvm,
    ram: Ram,
    /// Held by the vCPU that empties the ring of coalesced writes, which all vCPUs share; `None` if KVM has no such ring.
    coalesced: Option<Arc<Mutex<()>>>,
}

impl Vm {
    /// Opens KVM and makes a virtual machine over `ram`.
    ///
    /// # Errors
    /// [`KvmError`]; nothing is left behind.
    pub fn new(ram: Ram) -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(KvmError::Open)?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(KvmError::Version(version));
        }
        for (cap, name) in [
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Missing(name));
            }
        }
        // KVM_CREATE_VM is interrupted by any signal on some kernels; it does nothing then.
        let fd = loop {
            match kvm.create_vm() {
                Err(e) if e.errno() == libc::EINTR => {}
                result => break result.map_err(ioctl("KVM_CREATE_VM"))?,
            }
        };
        let coalesced = kvm.check_extension(Cap::CoalescedMmio).then(Arc::default);
        let fd = Arc::new(fd);
        let vm = Self { routes: Routes::new(Arc::clone(&fd)), fd, kvm, ram, coalesced };
        vm.map_ram()?;
        vm.fd
            .set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.fd.set_tss_address(layout::KVM_TSS).map_err(ioctl("KVM_SET_TSS_ADDR"))?;
        vm.fd.create_irq_chip().map_err(ioctl("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.fd.create_pit2(pit).map_err(ioctl("KVM_CREATE_PIT2"))?;
        vm.drop_missed_ticks();
        Ok(vm)
    }

    /// Has the PIT drop ticks that the guest was too slow for instead of sending them later: a guest that lives by the PIT
    /// (without ACPI, say) on a slow host would do nothing but catch up. Its clock is kvm-clock, which needs no ticks.
    fn drop_missed_ticks(&self) {
        let control = kvm_reinject_control { pit_reinject: 0, ..Default::default() };
        // SAFETY: the ioctl reads the struct, which outlives the call.
        let result = unsafe { ioctl_with_ref(&*self.fd, KVM_REINJECT_CONTROL(), &control) };
        if result < 0 {
            log::debug!("KVM_REINJECT_CONTROL: {}", std::io::Error::last_os_error());
        }
    }

    fn map_ram(&self) -> Result<(), KvmError> {
        for (slot, region) in (0u32..).zip(self.ram.iter()) {
            let gpa = region.start_addr();
            let host = self.ram.get_host_address(gpa).map_err(|_| KvmError::NotMapped(gpa.0))?;
            let memory = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: gpa.0,
                memory_size: region.len(),
                userspace_addr: host as u64,
                flags: 0,
            };
            // SAFETY: the region is mapped for as long as `self.ram` is held, and `self.fd` is dropped before it (field
            // order); a `VmFd` that a line or a vCPU still holds keeps the slot, but its guest runs no more then, and
            // `GuestRam` keeps RAM mapped while anybody holds it. Slots are numbered once, regions are disjoint.
            unsafe { self.fd.set_user_memory_region(memory) }.map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// The guest's RAM.
    #[must_use]
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// What KVM can give a vCPU (`KVM_GET_SUPPORTED_CPUID`).
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
        let supported = self
            .kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(supported.as_slice().to_vec())
    }

    /// What beside CPUID decides a vCPU's features.
    #[must_use]
    pub fn host(&self, tsc_khz: Option<u32>) -> cpuid::Host {
        cpuid::Host { tsc_deadline: self.kvm.check_extension(Cap::TscDeadlineTimer), tsc_khz }
    }

    /// Whether `KVM_KVMCLOCK_CTRL` and `KVM_GET_TSC_KHZ` may be used.
    #[must_use]
    pub fn has_tsc_khz(&self) -> bool {
        self.kvm.check_extension(Cap::GetTscKhz)
    }

    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The interrupt line `gsi`, edge triggered.
    #[must_use]
    pub fn line(&self, gsi: u32) -> Arc<GsiLine> {
        Arc::new(GsiLine::new(Arc::clone(&self.fd), gsi))
    }

    /// Message-signalled interrupts of a device with `vectors` vectors.
    #[must_use]
    pub fn messages(&self, vectors: u16) -> Arc<Messages> {
        let slots = (0..vectors).map(|_| MessageSlot::default()).collect();
        let connections = Connections::new(Arc::clone(&self.routes));
        Arc::new(Messages { fd: Arc::clone(&self.fd), slots, connections })
    }

    /// Has guest writes of `queue` (32 bits) to the MMIO address `addr` signal `kick` without leaving the kernel.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn notify_by_value(&self, kick: &EventFd, addr: u64, queue: u32) -> Result<(), KvmError> {
        self.fd.register_ioevent(kick, &IoEventAddress::Mmio(addr), queue).map_err(ioctl("KVM_IOEVENTFD"))
    }

    /// Lets guest writes of 32 bits to the MMIO address `addr` wait in the kernel until a vCPU next reads a register: for
    /// registers whose writes only matter to later reads.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn coalesce(&self, addr: u64) -> Result<(), KvmError> {
        if self.coalesced.is_none() {
            return Ok(());
        }
        let addr = IoEventAddress::Mmio(addr);
        self.fd.register_coalesced_mmio(addr, 4).map_err(ioctl("KVM_REGISTER_COALESCED_MMIO"))
    }

    pub(super) fn coalesced(&self) -> Option<Arc<Mutex<()>>> {
        self.coalesced.clone()
    }

    /// Has any guest write to `addr` signal `kick` without leaving the kernel.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn notify_by_address(&self, kick: &EventFd, addr: &IoEventAddress) -> Result<(), KvmError> {
        self.fd.register_ioevent(kick, addr, NoDatamatch).map_err(ioctl("KVM_IOEVENTFD"))
    }

    /// Undoes [`Vm::notify_by_address`].
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn forget_notify_by_address(&self, kick: &EventFd, addr: &IoEventAddress) -> Result<(), KvmError> {
        self.fd.unregister_ioevent(kick, addr, NoDatamatch).map_err(ioctl("KVM_IOEVENTFD"))
    }
}

#[derive(Default)]
struct MessageSlot {
    address: AtomicU64,
    data: AtomicU32,
}

/// The MSI-X vectors of one device, sent by `KVM_SIGNAL_MSI`: as quick as an irqfd for a sender in this process, and a
/// guest that programs a vector costs no rebuild of KVM's routing table.
pub struct Messages {
    fd: Arc<VmFd>,
    slots: Vec<MessageSlot>,
    /// Those that others send, by irqfd.
    connections: Connections,
}

impl MsixSink for Messages {
    fn route(&self, vector: u16, message: MsixMessage, masked: bool) {
        if let Some(slot) = self.slots.get(usize::from(vector)).filter(|_| !masked) {
            slot.address.store(message.address, Ordering::Relaxed);
            // Release: whoever triggers after the unmask sees the address that goes with the data.
            slot.data.store(message.data, Ordering::Release);
        }
        self.connections.route(vector, message, masked);
    }

    fn connect(&self, vector: u16, message: MsixMessage, masked: bool, eventfd: &Eventfd) -> bool {
        self.connections.connect(vector, message, masked, eventfd)
    }

    fn disconnect(&self, eventfd: &Eventfd) {
        self.connections.disconnect(eventfd);
    }

    fn trigger(&self, vector: u16) {
        let Some(slot) = self.slots.get(usize::from(vector)) else { return };
        let data = slot.data.load(Ordering::Acquire);
        let address = slot.address.load(Ordering::Relaxed);
        let msi = kvm_msi {
            #[allow(clippy::cast_possible_truncation)] // the two halves
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // A guest may program an address that no APIC answers: its interrupt is lost, as on hardware.
        if let Err(e) = self.fd.signal_msi(msi) {
            log::debug!("message {address:#x} of vector {vector} went nowhere: {e}");
        }
    }
}
