//! Devices that come and go while the guest runs. For one to go the guest is asked, and given time.

use std::time::{Duration, Instant};

use super::config::{DriveEntry, NetEntry};
use super::driver::Driver;
use super::files::Host;
use super::planning::{drive_plan, net_plan};
use super::{Answer, Configure, Denial, Outcome, ReplySlot, Unplug};
use crate::events::EventKind;
use crate::machine::plug::Which;
use crate::machine::slots::Held;

/// How long a guest may take to let go of a device that its driver uses: it writes back what it has for a disk first.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long of one that no driver uses. A guest whose kernel has no ACPI hot-plug never answers.
const PATIENCE_IDLE: Duration = Duration::from_secs(1);

/// Whoever waits for a device to go.
pub(super) struct Pending {
    what: Unplug,
    reply: ReplySlot,
    idle_until: Instant,
    until: Instant,
}

impl Driver {
    /// Adds a device to a guest that runs.
    pub(super) fn plug(&mut self, what: Configure) -> Answer {
        let machine = self.machine.as_mut().ok_or(Denial::BeforeStart)?;
        if !machine.has_slots() {
            return Err(Denial::NoPci);
        }
        let group = match &what {
            Configure::Drive(spec) => spec.group.as_ref(),
            Configure::NetworkInterface(spec) => spec.rate_limiter_group.as_ref(),
            _ => None,
        };
        let group = self.resources.group(group).cloned();
        let (id, which, done) = match what {
            Configure::Drive(spec) => {
                let (id, which) = (spec.id.clone(), Which::Drive(self.resources.drives().len()));
                let plug = |drive: &DriveEntry<Host>| {
                    machine.plug_drive(drive_plan(drive, group.as_ref())).map_err(|error| error.to_string())
                };
                (id, which, self.resources.plug_drive(&mut self.host, spec, plug))
            }
            Configure::NetworkInterface(spec) => {
                let (id, which) = (spec.iface_id.clone(), Which::Net(self.resources.nets().len()));
                let plug = |net: &NetEntry<Host>| {
                    machine.plug_net(net_plan(net, group.as_ref())).map_err(|error| error.to_string())
                };
                (id, which, self.resources.plug_net(&mut self.host, spec, plug))
            }
            _ => return Err(Denial::AfterStart),
        };
        if done.is_ok() {
            machine.register_metrics_of(which, &self.shared.metrics);
            self.shared.events.push_about(EventKind::DeviceAdded, Some(&id), None);
        }
        done
    }

    /// Asks the guest to let go of a device; `reply` is answered by [`Driver::see_to_unplugs`], or now if that can't be done.
    pub(super) fn begin_unplug(&mut self, what: Unplug, reply: ReplySlot) {
        match self.ask_back(&what) {
            Ok(()) => {
                let now = Instant::now();
                self.unplugs.push(Pending {
                    what,
                    reply,
                    idle_until: now + PATIENCE_IDLE,
                    until: now + PATIENCE,
                });
            }
            Err(denial) => reply.answer(Err(denial)),
        }
    }

    fn ask_back(&self, what: &Unplug) -> Result<(), Denial> {
        let machine = self.machine()?;
        if !machine.has_slots() {
            return Err(Denial::NoPci);
        }
        machine.ask_back(self.resources.place_of(what)?);
        Ok(())
    }

    /// When to look again whether devices have gone.
    pub(super) fn unplugs_due(&self, now: Instant) -> Option<Instant> {
        let next = |pending: &Pending| {
            if now < pending.idle_until { pending.idle_until } else { pending.until }
        };
        self.unplugs.iter().map(next).min()
    }

    /// Takes away what the guest has let go of, and answers those who wait for that, and those who have waited for too long.
    pub(super) fn see_to_unplugs(&mut self, now: Instant) {
        for pending in std::mem::take(&mut self.unplugs) {
            // Somebody else may have asked for the same.
            let Ok(which) = self.resources.place_of(&pending.what) else {
                pending.reply.answer(Ok(Outcome::Done));
                continue;
            };
            match self.machine.as_ref().map_or(Held::No, |machine| machine.held(which)) {
                Held::InUse if now >= pending.until => {
                    if let Some(machine) = &self.machine {
                        machine.keep(which);
                    }
                    let (id, seconds) = (pending.what.id().to_owned(), PATIENCE.as_secs());
                    pending.reply.answer(Err(Denial::Kept { id, seconds }));
                }
                Held::InUse => self.unplugs.push(pending),
                Held::Idle if now < pending.idle_until => self.unplugs.push(pending),
                Held::Idle | Held::No => {
                    self.take_away(&pending.what, which);
                    pending.reply.answer(Ok(Outcome::Done));
                }
            }
        }
    }

    /// A guest that is gone holds nothing.
    pub(super) fn end_unplugs(&mut self) {
        debug_assert!(self.machine.is_none(), "the guest is asked while there is one");
        self.see_to_unplugs(Instant::now());
    }

    fn take_away(&mut self, what: &Unplug, which: Which) {
        if let Some(machine) = &mut self.machine {
            machine.unplug(which);
        }
        let family = match what {
            Unplug::Drive(_) => "block",
            Unplug::NetworkInterface(_) => "net",
        };
        self.shared.metrics.retire(family, what.id());
        // The last to have its file open.
        self.resources.remove(which);
        self.shared.events.push_about(EventKind::DeviceRemoved, Some(what.id()), None);
    }
}
