//! Interrupt lines: pins of the interrupt chips.

use std::sync::{Arc, Mutex, PoisonError};

use devices::irq::Line;
use kvm_ioctls::VmFd;

/// Raises and lowers a line, one after the other for all threads: were the line still high for somebody else, raising it
/// would be no edge, and the guest, which may have dealt with that somebody's by now, would never hear of this one.
#[derive(Default)]
struct Pulse(Mutex<()>);

impl Pulse {
    fn send(&self, mut set: impl FnMut(bool)) {
        let _alone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        set(true);
        set(false);
    }
}

/// One pin of the interrupt chips, edge triggered.
///
/// Pulsed by `KVM_IRQ_LINE` rather than an irqfd: KVM injects an irqfd of a pin from a kernel worker, one more thread to
/// wake for each interrupt, while the ioctl injects in the caller.
pub struct GsiLine {
    fd: Arc<VmFd>,
    gsi: u32,
    pulse: Pulse,
}

impl GsiLine {
    /// Line `gsi` of the machine `fd`.
    pub(super) fn new(fd: Arc<VmFd>, gsi: u32) -> Self {
        Self { fd, gsi, pulse: Pulse::default() }
    }
}

impl Line for GsiLine {
    fn trigger(&self) {
        self.pulse.send(|level| {
            if let Err(e) = self.fd.set_irq_line(self.gsi, level) {
                log::error!("interrupt {} could not be raised: {e}", self.gsi);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn threads_that_share_a_line_raise_as_many_edges_as_they_send() {
        const EACH: u32 = 2_000;
        let (pulse, high, edges) = (Pulse::default(), AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        pulse.send(|level| {
                            if !high.swap(level, Ordering::SeqCst) && level {
                                edges.fetch_add(1, Ordering::SeqCst);
                            }
                            // As if somebody else had the CPU now.
                            thread::yield_now();
                        });
                    }
                });
            }
        });
        assert_eq!(edges.into_inner(), 4 * EACH);
    }
}
