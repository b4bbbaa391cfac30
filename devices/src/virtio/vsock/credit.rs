//! Who may send how much: each side says how many bytes it sets aside for a connection and how many of those it got it has
//! taken out again; the other sends no more than what is left (virtio 1.2 §5.10.6.3). All counts are modulo 2^32.

/// What the guest may still send us: we set `alloc` bytes aside, and hold it to that.
#[derive(Debug)]
pub struct Inbound {
    alloc: u32,
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    announced: u32,
}

impl Inbound {
    /// With `alloc` bytes set aside.
    #[must_use]
    pub fn new(alloc: u32) -> Self {
        Self { alloc, received: 0, forwarded: 0, announced: 0 }
    }

    /// Bytes received that were not passed on yet.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Takes `len` bytes in; false, and nothing is taken, if there is no room for them: the guest knew.
    #[must_use]
    pub fn take(&mut self, len: u32) -> bool {
        // What is held never exceeds `alloc`, so neither side of this wraps.
        let fits = len <= self.alloc - self.held();
        if fits {
            self.received = self.received.wrapping_add(len);
        }
        fits
    }

    /// `len` of the bytes held were passed on.
    pub fn forward(&mut self, len: u32) {
        debug_assert!(len <= self.held());
        self.forwarded = self.forwarded.wrapping_add(len.min(self.held()));
    }

    /// What the header of a packet says: `buf_alloc` and `fwd_cnt`. The guest knows them from then on.
    pub fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (self.alloc, self.forwarded)
    }

    /// Whether the guest is to be told: it may believe that more than half of the room is taken, and is wrong.
    #[must_use]
    pub fn update_is_due(&self) -> bool {
        let believed = self.received.wrapping_sub(self.announced);
        self.announced != self.forwarded && believed > self.alloc / 2
    }
}

/// What we may still send the guest, by what it said last.
#[derive(Debug, Default)]
pub struct Outbound {
    alloc: u32,
    sent: u32,
    forwarded: u32,
}

impl Outbound {
    /// The guest's packet says so.
    pub fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        (self.alloc, self.forwarded) = (buf_alloc, fwd_cnt);
    }

    /// Bytes that the guest sets aside in all.
    #[must_use]
    pub fn alloc(&self) -> u32 {
        self.alloc
    }

    /// Bytes it has room for. None if it contradicts itself: it took out more than it got, or set less aside than it holds.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.alloc.saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }

    /// `len` bytes were sent.
    pub fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The model counts in numbers that don't wrap, from wherever the counters stand.
        #[test]
        fn no_more_is_ever_held_than_was_announced_and_none_is_lost(
            alloc in 1u32..1 << 20,
            start: u32,
            steps in prop::collection::vec((0u32..3, 0u32..1 << 20), 0..200),
        ) {
            let mut ours = Inbound { alloc, received: start, forwarded: start, announced: start };
            let mut guest = Outbound { alloc, sent: start, forwarded: start };
            let (mut received, mut forwarded) = (0u64, 0u64);
            for (what, len) in steps {
                match what {
                    0 => {
                        let fits = received + u64::from(len) - forwarded <= u64::from(alloc);
                        prop_assert_eq!(ours.take(len), fits);
                        // What a guest that keeps to the rules would send is always taken.
                        prop_assert!(fits || len > guest.free());
                        if fits {
                            received += u64::from(len);
                            guest.send(len);
                        }
                    }
                    1 => {
                        let len = len.min(ours.held());
                        ours.forward(len);
                        forwarded += u64::from(len);
                    }
                    _ => {
                        let (alloc, fwd) = ours.announce();
                        guest.learn(alloc, fwd);
                        prop_assert_eq!(u64::from(guest.free()), u64::from(alloc) - (received - forwarded));
                        prop_assert!(!ours.update_is_due());
                    }
                }
                prop_assert_eq!(u64::from(ours.held()), received - forwarded);
                prop_assert!(ours.held() <= alloc);
                // A guest without credit hears of it as soon as there is some.
                prop_assert!(guest.free() > 0 || ours.held() == alloc || ours.update_is_due());
            }
        }

        #[test]
        fn a_guest_that_lies_about_its_room_gets_no_more_than_it_says(alloc: u32, fwd: u32, sent: u32) {
            let out = Outbound { alloc, sent, forwarded: fwd };
            prop_assert!(out.free() <= alloc);
        }
    }
}
