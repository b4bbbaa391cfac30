//! Interrupts that somebody outside of the process raises, as far as KVM shows without a guest.

use std::sync::Arc;

use devices::irq::Eventfd;
use devices::pci::msix::{MsixMessage, MsixSink};
use vm_memory::GuestAddress;
use vmm::kvm::vm::Vm;
use vmm::mem::ram::{Backing, GuestRam};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::kvm;

const MESSAGE: MsixMessage = MsixMessage { address: 0xfee0_0000, data: 0x31 };

fn machine() -> (GuestRam, Vm) {
    let ram = GuestRam::new(&[(GuestAddress(0), 1 << 20)], Backing::default(), false).unwrap();
    let vm = Vm::new(ram.ram().clone()).unwrap();
    (ram, vm)
}

#[test]
fn kvm_takes_what_an_eventfd_counts_while_its_vector_is_unmasked_and_only_then() {
    if !kvm() {
        return;
    }
    let (_ram, vm) = machine();
    let messages = vm.messages(2);
    let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let handle: Eventfd = eventfd.clone();
    let kept = || {
        eventfd.write(1).unwrap();
        eventfd.read().is_ok()
    };
    assert!(messages.connect(1, MESSAGE, true, &handle));
    assert!(kept(), "masked: it counts for later");
    for _ in 0..3 {
        messages.route(1, MESSAGE, false);
        assert!(!kept(), "unmasked: KVM has taken it");
        messages.route(1, MsixMessage { data: 0x32, ..MESSAGE }, false);
        assert!(!kept(), "another message, and still unmasked");
        messages.route(0, MESSAGE, true);
        assert!(!kept(), "another vector is masked");
        messages.route(1, MESSAGE, true);
        assert!(kept());
    }
    messages.route(1, MESSAGE, false);
    messages.disconnect(&handle);
    assert!(kept(), "nobody's");
    messages.route(1, MESSAGE, false);
    assert!(kept());
}

#[test]
fn connections_that_come_and_go_use_up_nothing_whoever_forgets_them() {
    if !kvm() {
        return;
    }
    let (_ram, vm) = machine();
    let handle: Eventfd = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    // More than there are numbers for.
    for round in 0..1_100 {
        let messages = vm.messages(1);
        assert!(messages.connect(0, MESSAGE, false, &handle), "round {round}");
        if round % 2 == 0 {
            messages.disconnect(&handle);
        }
    }
}
