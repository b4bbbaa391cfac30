//! Devices that come and go while the guest runs.

use super::Machine;
use super::build::BuildError;
use super::devices::{Device, Made};
use super::plan::{DrivePlan, NetPlan};
use super::slots::{Held, Slots};

/// One of a machine's devices, by its place among those of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// A drive.
    Drive(usize),
    /// A network interface.
    Net(usize),
}

impl Machine {
    /// Whether devices can come and go: there is a PCI bus.
    #[must_use]
    pub fn has_slots(&self) -> bool {
        self.slots.is_some()
    }

    /// Adds a drive, the last, and has the guest look for it.
    ///
    /// # Errors
    /// [`BuildError::NoSlot`] (also without a PCI bus), [`BuildError::Threads`], [`BuildError::Kvm`]; then nothing has changed.
    pub fn plug_drive(&mut self, plan: DrivePlan) -> Result<(), BuildError> {
        let made = self.maker.drive(plan, self.drives.len() + 1)?;
        let device = plug(self.slots.as_ref(), made)?;
        self.drives.push(device);
        Ok(())
    }

    /// Adds a network interface, likewise.
    ///
    /// # Errors
    /// As [`Machine::plug_drive`].
    pub fn plug_net(&mut self, plan: NetPlan) -> Result<(), BuildError> {
        let slots = self.slots.as_ref().ok_or(BuildError::NoSlot)?;
        let device = plug(Some(slots), self.maker.net(plan, slots.vm.ram())?)?;
        self.nets.push(device);
        Ok(())
    }

    /// Calls `with` with the bus and a device, if it is there.
    fn at<T>(
        &self,
        which: Which,
        with: impl FnOnce(&Slots, &super::slots::Place, &super::worker::Worker) -> T,
    ) -> Option<T> {
        let slots = self.slots.as_ref()?;
        let (place, worker) = match which {
            Which::Drive(index) => self.drives.get(index).map(|d| (&d.place, &d.worker)),
            Which::Net(index) => self.nets.get(index).map(|d| (&d.place, &d.worker)),
        }?;
        place.as_ref().map(|place| with(slots, place, worker))
    }

    /// Asks the guest to let go of a device.
    pub fn ask_back(&self, which: Which) {
        self.at(which, |slots, place, _| slots.ask_back(place));
    }

    /// Lets the guest keep a device that was asked for.
    pub fn keep(&self, which: Which) {
        self.at(which, |slots, place, _| slots.keep(place));
    }

    /// How far the guest has let go of a device; of one that is not there, all the way.
    #[must_use]
    pub fn held(&self, which: Which) -> Held {
        self.at(which, |slots, place, _| slots.held(place)).unwrap_or(Held::No)
    }

    /// Takes a device away from the guest, and ends it. Those after it move up by one.
    pub fn unplug(&mut self, which: Which) {
        self.at(which, |slots, place, worker| slots.take_away(place, worker));
        match which {
            Which::Drive(index) if index < self.drives.len() => drop(self.drives.remove(index)),
            Which::Net(index) if index < self.nets.len() => drop(self.nets.remove(index)),
            _ => {}
        }
    }
}

fn plug<H>(slots: Option<&Slots>, made: Made<H>) -> Result<Device<H>, BuildError> {
    let slots = slots.ok_or(BuildError::NoSlot)?;
    made.place(|idle, worker| slots.plug(idle, worker).map(Some))
}
