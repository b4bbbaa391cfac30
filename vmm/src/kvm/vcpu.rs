//! One virtual processor: made, given its registers, run.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, Msrs, kvm_cpuid_entry2, kvm_lapic_state, kvm_mp_state, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::vm::Vm;
use super::{KvmError, ioctl};
use crate::arch::x86_64::cpuid::{self, Topology};
use crate::arch::x86_64::{msr, regs};

/// Why `KVM_RUN` returned, cut down to what the machine has to act on. Port and memory accesses were answered already.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// A port or memory access, or a signal: look around and go on.
    Continue,
    /// Triple fault, or a shutdown event.
    Shutdown,
    /// KVM can't go on; what it said.
    Broken(String),
}

/// Answers the port and memory accesses of a vCPU.
pub trait Accesses {
    /// `in` of 1, 2 or 4 bytes.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// `out` of 1, 2 or 4 bytes.
    fn port_write(&self, port: u16, data: &[u8]);
    /// A load from where there is no RAM.
    fn memory_read(&self, addr: u64, data: &mut [u8]);
    /// A store to where there is no RAM.
    fn memory_write(&self, addr: u64, data: &[u8]);
}

/// A vCPU, not yet or no longer in the guest.
pub struct Vcpu {
    fd: VcpuFd,
    id: u8,
    coalesced: Option<Arc<Mutex<()>>>,
}

impl Vcpu {
    /// Makes vCPU `id`.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn new(vm: &Vm, id: u8) -> Result<Self, KvmError> {
        let mut fd = vm.fd().create_vcpu(u64::from(id)).map_err(ioctl("KVM_CREATE_VCPU"))?;
        let coalesced = vm.coalesced();
        if coalesced.is_some() {
            fd.map_coalesced_mmio_ring().map_err(ioctl("mmap of the ring of coalesced writes"))?;
        }
        Ok(Self { fd, id, coalesced })
    }

    /// Its number and APIC ID.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    /// The guest's TSC frequency, if KVM tells.
    #[must_use]
    pub fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok().filter(|khz| *khz > 0)
    }

    /// Gives it its features, MSRs and local interrupts.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn configure(&self, base: &[kvm_cpuid_entry2], topology: Topology) -> Result<(), KvmError> {
        let table = cpuid::of_vcpu(base, topology, self.id).map_err(|_| KvmError::TooMany("CPUID"))?;
        self.fd.set_cpuid2(&table).map_err(ioctl("KVM_SET_CPUID2"))?;
        let entries = msr::boot();
        let msrs = Msrs::from_entries(&entries).map_err(|_| KvmError::TooMany("MSR"))?;
        let taken = self.fd.set_msrs(&msrs).map_err(ioctl("KVM_SET_MSRS"))?;
        if let Some(refused) = entries.get(taken) {
            return Err(KvmError::MsrRefused(refused.index));
        }
        let fpu = regs::floating_point();
        self.fd.set_fpu(&fpu).map_err(ioctl("KVM_SET_FPU"))?;
        self.set_local_interrupts()
    }

    /// LINT0 takes the PIC's interrupts, LINT1 NMIs (Intel SDM vol. 3 §11.5.1).
    fn set_local_interrupts(&self) -> Result<(), KvmError> {
        const LVT_LINT0: usize = 0x350;
        const LVT_LINT1: usize = 0x360;
        const MODE_NMI: u32 = 4 << 8;
        const MODE_EXTINT: u32 = 7 << 8;
        let mut lapic: kvm_lapic_state = self.fd.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))?;
        for (offset, mode) in [(LVT_LINT0, MODE_EXTINT), (LVT_LINT1, MODE_NMI)] {
            for (at, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(mode.to_le_bytes()) {
                #[allow(clippy::cast_possible_wrap)] // KVM's registers are C chars
                {
                    *at = byte as i8;
                }
            }
        }
        self.fd.set_lapic(&lapic).map_err(ioctl("KVM_SET_LAPIC"))
    }

    /// Puts it at the kernel's entry; for the boot processor. The others wait for its startup message.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn enter_at(&self, vm: &Vm, entry: regs::Entry) -> Result<(), KvmError> {
        let mut sregs = self.fd.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?;
        regs::set_up_tables(vm.ram(), entry, &mut sregs);
        self.fd.set_sregs(&sregs).map_err(ioctl("KVM_SET_SREGS"))?;
        self.fd.set_regs(&regs::general(entry)).map_err(ioctl("KVM_SET_REGS"))?;
        let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
        self.fd.set_mp_state(runnable).map_err(ioctl("KVM_SET_MP_STATE"))
    }

    /// Makes this thread kickable as this vCPU's.
    #[must_use]
    pub fn kickable(&mut self) -> super::kick::Kickable {
        super::kick::Kickable::new(&mut self.fd)
    }

    /// Tells the guest's clock and watchdogs that it was held, so that they don't take the gap for a lockup.
    pub fn was_paused(&self) {
        // EINVAL where the guest has no kvm-clock: nobody to tell.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Runs the guest until something has to be done about it.
    pub fn run(&mut self, accesses: &impl Accesses) -> Exit {
        let kvm_run: *const kvm_run = self.fd.get_kvm_run();
        // The width of a port access: a string instruction moves several at once.
        #[allow(clippy::multiple_unsafe_ops_per_block)] // one read, through a pointer and a union
        let width = || {
            // SAFETY: `kvm_run` is mapped as long as `self.fd` lives, and for the two exits that call this the member of
            // the union that KVM filled in is `io`.
            usize::from(unsafe { (*kvm_run).__bindgen_anon_1.io.size }).max(1)
        };
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                data.chunks_mut(width()).for_each(|data| accesses.port_read(port, data));
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                data.chunks(width()).for_each(|data| accesses.port_write(port, data));
            }
            Ok(VcpuExit::MmioRead(addr, data)) => {
                let len = data.len();
                self.take_coalesced(accesses);
                let mut value = [0; 8];
                accesses.memory_read(addr, &mut value[..len]);
                self.fd.get_kvm_run().__bindgen_anon_1.mmio.data = value;
            }
            Ok(VcpuExit::MmioWrite(addr, data)) => accesses.memory_write(addr, data),
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
            Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(..)) => return Exit::Shutdown,
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Exit::Broken(format!(
                    "entry failed for hardware reason {reason:#x} on processor {cpu}"
                ));
            }
            Ok(VcpuExit::InternalError) => return Exit::Broken(self.internal_error()),
            Ok(other) => return Exit::Broken(format!("unexpected exit {other:?}")),
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {
                self.fd.set_kvm_immediate_exit(0);
            }
            Err(e) => return Exit::Broken(format!("KVM_RUN: {e}")),
        }
        Exit::Continue
    }

    /// Does the writes that KVM kept: they came before the read that is to be answered.
    fn take_coalesced(&mut self, accesses: &impl Accesses) {
        let Some(lock) = &self.coalesced else { return };
        let _one_at_a_time = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some(write)) = self.fd.coalesced_mmio_read() {
            let len = write.data.len().min(write.len as usize);
            accesses.memory_write(write.phys_addr, &write.data[..len]);
        }
    }

    /// The sub-error of `KVM_EXIT_INTERNAL_ERROR` and where the guest was.
    fn internal_error(&mut self) -> String {
        // SAFETY: the exit reason says that this member of the union is the one that KVM filled in.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        let rip = self.fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
        let what = match suberror {
            1 => "it can't emulate an instruction",
            2 => "simultaneous exceptions",
            3 => "delivering an event failed",
            4 => "unexpected exit reason",
            _ => "internal error",
        };
        format!("{what} (suberror {suberror}) at {rip:#x}")
    }
}
