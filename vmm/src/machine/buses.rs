//! Where a vCPU's port and memory accesses go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::bus::Bus;

use crate::kvm::vcpu::Accesses;

/// The two address spaces of a machine. Filled while it is built, never changed while it runs, so vCPUs share it without
/// a lock.
#[derive(Default)]
pub struct Buses {
    /// Port I/O.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub memory: Bus,
    /// Accesses that nobody answered: reads give ones, writes go nowhere.
    pub unclaimed: Arc<AtomicU64>,
}

impl Buses {
    fn count(&self, claimed: bool) {
        if !claimed {
            self.unclaimed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Accesses for Buses {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.count(self.ports.read(u64::from(port), data));
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.count(self.ports.write(u64::from(port), data));
    }

    fn memory_read(&self, addr: u64, data: &mut [u8]) {
        self.count(self.memory.read(addr, data));
    }

    fn memory_write(&self, addr: u64, data: &[u8]) {
        self.count(self.memory.write(addr, data));
    }
}
