//! A machine: RAM, vCPUs and devices put together from what was asked for.
//!
//! | room | one idea |
//! |---|---|
//! | [`plan`] | what is to be built: checked and opened |
//! | [`build`] | the straight line from a plan to a machine |
//! | [`devices`] | its virtio devices, with their threads |
//! | [`slots`], [`plug`] | their places on the PCI bus; how they come and go while the guest runs |
//! | [`worker`] | a device's own thread |
//! | [`buses`] | where a vCPU's port and memory accesses go |
//! | [`platform`] | ACPI's ports, pvpanic, the boot timer |
//! | [`ended`] | why a guest ended |

pub mod build;
pub mod buses;
pub mod devices;
pub mod ended;
#[cfg(test)]
mod pairs_tests;
pub mod plan;
pub mod platform;
pub mod plug;
mod readings;
pub mod slots;
pub mod worker;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ::devices::i8042::I8042;
use ::devices::limiter::LimiterSpec;
use ::devices::serial::ConsoleBuffer;
use ::devices::virtio::block::BlockHandle;
use ::devices::virtio::rng::RngHandle;
use ::devices::virtio::vsock::VsockHandle;

use crate::host::disk::Disk;
use crate::mem::ram::GuestRam;
use crate::vcpu::Vcpus;
use devices::{Device, Maker, NetControl};
use platform::AcpiPorts;
use slots::Slots;
use worker::Worker;

/// A machine. Its guest is paused when it is built. Dropping it stops vCPUs and devices, in that order, and gives RAM back.
pub struct Machine {
    vcpus: Vcpus,
    drives: Vec<Device<BlockHandle>>,
    nets: Vec<Device<NetControl>>,
    entropy: Option<Device<RngHandle>>,
    vsock: Option<Device<VsockHandle>>,
    acpi: Arc<AcpiPorts>,
    keyboard: Arc<I8042>,
    console: Arc<ConsoleBuffer>,
    unclaimed: Arc<AtomicU64>,
    maker: Maker,
    /// Where devices come and go, if there is a PCI bus.
    slots: Option<Slots>,
    // After everything that holds RAM or an address in it.
    _ram: GuestRam,
}

impl Machine {
    fn workers(&self) -> impl Iterator<Item = &Worker> {
        let drives = self.drives.iter().map(|d| &d.worker);
        let nets = self.nets.iter().map(|d| &d.worker);
        let entropy = self.entropy.iter().map(|d| &d.worker);
        drives.chain(nets).chain(entropy).chain(self.vsock.iter().map(|d| &d.worker))
    }

    /// Holds the guest and its devices: when this returns nothing is emulated.
    pub fn pause(&self) {
        // vCPUs first: one that is resetting a device waits for the device's thread.
        self.vcpus.pause();
        self.workers().for_each(|worker| worker.handle().pause());
    }

    /// Lets the guest run. One that has network drivers already is asked to tell the network where it is.
    pub fn resume(&self) {
        self.workers().for_each(|worker| worker.handle().resume());
        self.nets.iter().for_each(|net| net.handle.net.announce());
        self.vcpus.resume();
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.acpi.press_power_button();
    }

    /// Presses Ctrl-Alt-Del.
    pub fn ctrl_alt_del(&self) {
        if !self.keyboard.ctrl_alt_del() {
            log::warn!("the guest does not read its keyboard; Ctrl-Alt-Del was dropped");
        }
    }

    /// Changes drive `index`: another image (the guest is told of its size) and the limits.
    pub fn change_drive(&self, index: usize, disk: Option<Disk>, limits: LimiterSpec) {
        if let Some(drive) = self.drives.get(index) {
            if let Some(disk) = disk {
                drive.handle.swap_backing(Box::new(disk));
            }
            drive.handle.set_limits(limits);
            drive.worker.handle().kick_all();
        }
    }

    /// Has all devices look again: limits that several have together have changed.
    pub fn limits_changed(&self) {
        self.workers().for_each(|worker| worker.handle().kick_all());
    }

    /// Changes the limits of interface `index`.
    pub fn change_net(&self, index: usize, rx: LimiterSpec, tx: LimiterSpec) {
        if let Some(net) = self.nets.get(index) {
            net.handle.set_limits(rx, tx);
            net.worker.handle().kick_all();
        }
    }

    /// Changes the limits of the entropy device.
    pub fn change_entropy(&self, limits: LimiterSpec) {
        if let Some(entropy) = &self.entropy {
            entropy.handle.set_limits(limits);
            entropy.worker.handle().kick_all();
        }
    }

    /// Changes the limits of the socket device.
    pub fn change_vsock(&self, limits: &LimiterSpec) {
        if let Some(vsock) = &self.vsock {
            vsock.handle.set_limits(limits);
            vsock.worker.handle().kick_all();
        }
    }
}
