//! Rate limits.

use super::*;
use crate::limiter::BucketSpec;
use crate::testing::clock::FakeClock;

const STREAM: Kind = Kind::Stream;
const PORTS: (u32, u32) = (52, 1024);

fn per_second(size: u64) -> Option<BucketSpec> {
    Some(BucketSpec { size, one_time_burst: 0, refill_time_ms: 1000 })
}

impl Rig {
    /// Makes a packet with payload available that may have to wait.
    fn says(&mut self, payload: &[u8]) -> Served {
        let mut header = self.header(STREAM, Op::Rw, PORTS.0, PORTS.1);
        header.len = u32::try_from(payload.len()).unwrap().into();
        self.publish(&header, payload);
        self.serve()
    }
}

#[test]
fn payload_of_both_directions_waits_for_one_limit_and_what_has_none_does_not() {
    let clock = FakeClock::at(0);
    let mut rig = Rig::limited(LimiterSpec { bytes: per_second(100), ops: None });
    let end = rig.connected(STREAM, PORTS);
    assert_eq!(rig.says(&[1; 100]), Served::Drained);
    assert!(rig.tx.used().is_some());
    // The guest has had it all: what the host says waits for the first byte, and is paid for afterwards.
    rig.host.world().say(end, &[2; 40]);
    let Served::After(wait) = rig.serve() else { panic!("the limit holds") };
    assert_eq!((wait, rig.packet()), (Duration::from_millis(10), None));
    clock.advance(wait);
    assert_eq!(rig.serve(), Served::Drained, "the host said no more");
    assert_eq!(rig.packet().unwrap().1, [2; 40]);
    // The 39 that are owed, and these.
    assert_eq!(rig.says(&[3; 10]), Served::After(Duration::from_millis(490)));
    clock.advance(Duration::from_millis(480));
    assert_eq!(rig.serve(), Served::After(Duration::from_millis(10)));
    assert!(rig.tx.used().is_none() && rig.host.world().ends[end].bytes().len() == 100);
    clock.advance(Duration::from_millis(10));
    assert_eq!(rig.serve(), Served::Drained);
    assert!(rig.tx.used().is_some() && rig.host.world().ends[end].bytes().len() == 110);
    let metrics = rig.handle.metrics();
    assert!(metrics.rx_throttled.get() > 0 && metrics.tx_throttled.get() > 0);
    // A reset has no payload.
    rig.send(STREAM, Op::Rst, PORTS, 0, &[]);
    assert!(rig.host.world().ends[end].closed);
}

#[test]
fn a_held_direction_goes_on_whichever_event_comes_when_it_may() {
    let clock = FakeClock::at(0);
    let mut rig = Rig::limited(LimiterSpec { bytes: None, ops: per_second(1) });
    let end = rig.connected(STREAM, PORTS);
    assert_eq!(rig.says(b"one"), Served::Drained);
    assert!(rig.tx.used().is_some());
    assert_eq!(rig.says(b"two"), Served::After(Duration::from_secs(1)));
    clock.advance(Duration::from_secs(1));
    assert_eq!(rig.device().ready(0), Served::Drained, "the guest does not kick again");
    assert!(rig.tx.used().is_some());
    assert_eq!(rig.host.world().ends[end].bytes(), b"onetwo");
}

#[test]
fn new_limits_hold_from_the_next_event_on() {
    let clock = FakeClock::at(0);
    let mut rig = Rig::limited(LimiterSpec { bytes: None, ops: per_second(1) });
    let end = rig.connected(STREAM, PORTS);
    assert_eq!(rig.says(b"one"), Served::Drained);
    assert!(matches!(rig.says(b"two"), Served::After(_)));
    rig.handle.set_limits(&LimiterSpec::default());
    assert_eq!(rig.serve(), Served::Drained);
    assert_eq!(rig.says(b"three"), Served::Drained);
    assert_eq!(rig.host.world().ends[end].bytes(), b"onetwothree");
    rig.handle.set_limits(&LimiterSpec { bytes: per_second(4), ops: None });
    assert_eq!(rig.says(b"four"), Served::Drained, "full buckets");
    assert_eq!(rig.says(b"five"), Served::After(Duration::from_secs(1)));
    clock.advance(Duration::from_secs(1));
    assert_eq!(rig.serve(), Served::Drained);
}
