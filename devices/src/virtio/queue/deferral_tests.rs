use proptest::prelude::*;

use super::*;
use crate::testing::queue::{Driver, give};
use crate::testing::ram;
use crate::virtio::queue::{Chain, F_EVENT_IDX};

const DELAY: Duration = Duration::from_millis(2);
const MS: u64 = 1_000_000;

/// A send queue, its driver, and the clock.
struct Rig {
    ram: Ram,
    driver: Driver,
    ring: Ring,
    chain: Chain,
    deferral: Deferral,
    now_ns: u64,
    /// Chains used so far, as the used index has it.
    used: u16,
}

impl Rig {
    fn new(size: u16) -> Self {
        let ram = ram::flat(0x1_0000);
        let driver = Driver::new(&ram, 0x1000, size);
        let ring = Ring::new(driver.queue(), F_EVENT_IDX);
        let chain = Chain::with_room_for(size);
        Self { ram, driver, ring, chain, deferral: Deferral::new(DELAY), now_ns: 0, used: 0 }
    }

    /// One that is in a conversation.
    fn in_conversation(size: u16) -> Self {
        let mut rig = Self::new(size);
        rig.converse(ANSWERS.0);
        rig
    }

    fn converse(&mut self, answers: u32) {
        for _ in 0..answers {
            assert_eq!(self.sends(1, 100), Due::Now, "not yet");
            self.takes_back();
            self.answered_after(MS / 2);
        }
    }

    /// The driver sends, each of `bytes`, and the device uses it.
    fn sends(&mut self, chains: u16, bytes: u64) -> Due {
        self.deferral.begin(&mut self.ring, &self.ram).unwrap();
        for _ in 0..chains {
            self.driver.send(&[give(0x8000, 64)]);
            assert!(self.ring.pop(&self.ram, &mut self.chain).unwrap());
            self.deferral.used(bytes);
            self.ring.finish(&self.ram, self.chain.head(), 0).unwrap();
            self.used = self.used.wrapping_add(1);
        }
        self.ask()
    }

    fn ask(&mut self) -> Due {
        self.deferral.ask(&mut self.ring, &self.ram, self.now_ns).unwrap()
    }

    /// The driver takes back all that was used, and wants to hear of the next.
    fn takes_back(&mut self) {
        self.driver.set_used_event(self.used);
    }

    fn answered_after(&mut self, ns: u64) {
        self.now_ns += ns;
        self.deferral.answered(self.now_ns);
    }

    fn later(&mut self, ns: u64) -> Due {
        self.now_ns += ns;
        self.ask()
    }
}

#[test]
fn what_the_driver_takes_back_by_itself_it_is_not_told() {
    let mut rig = Rig::in_conversation(256);
    for _ in 0..100 {
        assert_eq!(rig.sends(1, 100), Due::After(DELAY));
        rig.answered_after(MS / 2);
        rig.takes_back();
    }
    assert_eq!(rig.later(MS), Due::Never);
    assert_eq!(rig.ask(), Due::Never);
}

#[test]
fn a_driver_that_sends_on_hears_once_of_many() {
    let mut rig = Rig::in_conversation(256);
    // It takes nothing back before it is told, as that of sockets does.
    let mut told = 0;
    for _ in 0..100 {
        let due = rig.sends(1, 100);
        rig.answered_after(MS / 2);
        told += u32::from(due == Due::Now);
        if due == Due::Now {
            rig.takes_back();
        }
    }
    assert_eq!(told, 20, "once in a delay of four answers, and the one after");
    let mut rig = Rig::in_conversation(256);
    let dues: Vec<_> = (0..32).map(|_| rig.sends(1, 100)).collect();
    assert!(dues[..7].iter().all(|due| matches!(due, Due::After(_))), "{dues:?}");
}

#[test]
fn much_is_told_at_once() {
    let mut rig = Rig::in_conversation(256);
    assert_eq!(rig.sends(31, 100), Due::After(DELAY));
    assert_eq!(rig.sends(1, 100), Due::Now);
    let mut rig = Rig::in_conversation(256);
    assert_eq!(rig.sends(3, 65_536), Due::After(DELAY));
    assert_eq!(rig.sends(1, 65_536), Due::Now);
    // A short queue is soon full.
    let mut rig = Rig::in_conversation(16);
    assert_eq!(rig.sends(3, 100), Due::After(DELAY));
    assert_eq!(rig.sends(1, 100), Due::Now);
}

#[test]
fn who_waits_for_it_waits_once_and_is_believed_more_slowly_each_time() {
    let mut rig = Rig::in_conversation(256);
    for needed in [16, 32, 64] {
        assert_eq!(rig.sends(1, 100), Due::After(DELAY));
        assert_eq!(rig.later(MS), Due::After(DELAY / 2), "the rest of it");
        assert_eq!(rig.later(MS), Due::Now);
        rig.takes_back();
        rig.converse(needed);
    }
    assert_eq!(rig.sends(1, 100), Due::After(DELAY));
}

#[test]
fn who_is_not_answered_or_late_is_told_at_once() {
    let mut rig = Rig::new(256);
    for _ in 0..1_000 {
        assert_eq!(rig.sends(1, 100), Due::Now);
        rig.takes_back();
    }
    for _ in 0..1_000 {
        assert_eq!(rig.sends(1, 100), Due::Now);
        rig.takes_back();
        rig.answered_after(3 * MS);
    }
    // Also once answers stop.
    let mut rig = Rig::in_conversation(256);
    let dues: Vec<_> = (0..100)
        .map(|_| {
            let due = rig.sends(1, 100);
            rig.takes_back();
            due
        })
        .collect();
    assert!(dues[10..].iter().all(|due| *due == Due::Now), "{dues:?}");
}

#[test]
fn a_driver_without_used_event_is_told_the_same_way() {
    let mut rig = Rig::new(256);
    rig.ring = Ring::new(rig.driver.queue(), 0);
    rig.converse(ANSWERS.0);
    assert_eq!(rig.sends(1, 100), Due::After(DELAY));
    // It polls, and looks at everything before it wants to hear again.
    rig.driver.want_interrupts(false);
    assert_eq!(rig.later(2 * MS), Due::Never);
    rig.driver.want_interrupts(true);
    assert_eq!(rig.ask(), Due::Never);
    assert_eq!(rig.sends(1, 100), Due::After(DELAY));
    assert_eq!(rig.later(2 * MS), Due::Now);
}

proptest! {
    /// Whatever happens, who wants to hear of what was used hears of it within the delay, and once.
    #[test]
    fn nobody_waits_longer_than_the_delay(steps in prop::collection::vec((0u8..5, 0u16..40, 0u64..3), 1..200)) {
        let mut rig = Rig::in_conversation(64);
        // Since when, and up to which used index, the driver waits.
        let mut waits: Option<u64> = None;
        let mut seen = rig.used;
        for (what, count, half_ms) in steps {
            let due = match what {
                0 | 1 => rig.sends(count.clamp(1, 32), u64::from(count) * 1_000),
                2 => {
                    rig.answered_after(half_ms * MS / 2);
                    rig.ask()
                }
                3 => {
                    rig.takes_back();
                    (seen, waits) = (rig.used, None);
                    rig.ask()
                }
                _ => rig.later(half_ms * MS / 2),
            };
            if due == Due::Now {
                prop_assert!(rig.used != seen, "told of nothing");
                rig.takes_back();
                seen = rig.used;
            }
            waits = if rig.used == seen { None } else { waits.or(Some(rig.now_ns)) };
            if let Some(since) = waits {
                prop_assert!(matches!(due, Due::After(_)) && rig.now_ns - since < 2 * MS, "it waits: {due:?}");
            }
        }
    }
}
