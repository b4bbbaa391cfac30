use super::*;
use crate::agent::model::EgressClass;
use proptest::prelude::*;

const SECOND_NS: u64 = 1_000_000_000;
const WALL_NS: u64 = 1_795_395_723 * SECOND_NS;

fn at(boottime_s: u64) -> Instant {
    let (boottime_ns, boot_id) = (boottime_s * SECOND_NS, "boot-1".to_owned());
    Instant { boot_id, boottime_ns, wall_ns: WALL_NS + boottime_ns }
}

fn begin() -> Position {
    let owner = Owner {
        tenant: "acme".to_owned(),
        vm: "web".to_owned(),
        vm_id: "id-7".to_owned(),
        ..Owner::default()
    };
    Position::begin("inc1".to_owned(), owner, at(100))
}

fn sample(at: Instant, counters: Counters) -> Sample {
    Sample { incarnation: "inc1".to_owned(), at, counters, is_last: false }
}

fn vcpu(ns: u64) -> Counters {
    Counters::default().with(Meter::VcpuNs, ns)
}

#[test]
fn a_record_is_what_was_used_since_the_one_before() {
    let (first, position) = advance(&begin(), sample(at(160), vcpu(7))).unwrap();
    assert_eq!((first.id.as_str(), first.seq, first.duration_ns), ("inc1-0", 0, 60 * SECOND_NS));
    assert_eq!((first.start_ns, first.end_ns), (at(100).wall_ns, at(160).wall_ns));
    assert_eq!((first.used, first.clock, first.is_last), (vcpu(7), ClockState::Steady, false));
    let (second, _) = advance(&position, sample(at(220), vcpu(10))).unwrap();
    assert_eq!((second.id.as_str(), second.used), ("inc1-1", vcpu(3)));
    assert_eq!((second.start_ns, second.owner), (first.end_ns, first.owner));
}

#[test]
fn a_meter_that_was_not_read_is_counted_later() {
    let (_, position) = advance(&begin(), sample(at(110), vcpu(5))).unwrap();
    let (missed, position) = advance(&position, sample(at(120), Counters::default())).unwrap();
    assert!(missed.used.is_empty());
    let (later, _) = advance(&position, sample(at(130), vcpu(9))).unwrap();
    assert_eq!(later.used, vcpu(4));
}

#[test]
fn a_counter_that_went_back_is_an_error_and_not_a_negative_or_huge_amount() {
    let (_, position) = advance(&begin(), sample(at(110), vcpu(5))).unwrap();
    let error = advance(&position, sample(at(120), vcpu(4))).unwrap_err();
    assert_eq!(error.to_string(), "vcpu_ns of incarnation \"inc1\" went back from 5 to 4");
}

#[test]
fn a_wall_clock_set_back_makes_no_period_overlap_or_negative_and_is_marked_once() {
    let back = |mut at: Instant, seconds: u64| {
        at.wall_ns -= seconds * SECOND_NS;
        at
    };
    let (first, position) = advance(&begin(), sample(at(160), vcpu(1))).unwrap();
    // An hour back: the period has no room, and its usage is there all the same.
    let (second, position) = advance(&position, sample(back(at(220), 3600), vcpu(3))).unwrap();
    assert_eq!(
        (second.start_ns, second.end_ns, second.clock),
        (first.end_ns, first.end_ns, ClockState::SetBack)
    );
    assert_eq!((second.duration_ns, second.used), (60 * SECOND_NS, vcpu(2)));
    // An hour later the wall clock is where it was.
    let (third, position) = advance(&position, sample(back(at(220 + 3600), 3600), vcpu(4))).unwrap();
    assert_eq!((third.start_ns, third.end_ns), (first.end_ns, at(220).wall_ns));
    let (fourth, _) = advance(&position, sample(back(at(220 + 3660), 3600), vcpu(5))).unwrap();
    assert_eq!((fourth.start_ns, fourth.clock), (third.end_ns, ClockState::Steady));
}

#[test]
fn a_wall_clock_set_within_a_period_is_marked() {
    for (set_s, clock) in [(-30, ClockState::SetBack), (0, ClockState::Steady), (30, ClockState::SetForward)]
    {
        let mut now = at(160);
        now.wall_ns = now.wall_ns.checked_add_signed(set_s * 1_000_000_000).unwrap();
        let (record, _) = advance(&begin(), sample(now.clone(), vcpu(1))).unwrap();
        assert_eq!((record.clock, record.end_ns, record.duration_ns), (clock, now.wall_ns, 60 * SECOND_NS));
    }
}

#[test]
fn a_reboot_ends_the_incarnation_at_its_last_sample() {
    let (first, position) = advance(&begin(), sample(at(160), vcpu(7))).unwrap();
    let now = Instant { boot_id: "boot-2".to_owned(), boottime_ns: 5, wall_ns: at(999).wall_ns };
    let error = advance(&position, sample(now.clone(), vcpu(8))).unwrap_err();
    assert_eq!(error, MeterError::Survived("inc1".to_owned()));
    let (last, position) = advance(&position, sample(now.clone(), Counters::default())).unwrap();
    assert_eq!((last.start_ns, last.end_ns, last.duration_ns), (first.end_ns, first.end_ns, 0));
    assert_eq!((last.clock, last.is_last, last.used.is_empty()), (ClockState::Rebooted, true, true));
    let error = advance(&position, sample(now, Counters::default())).unwrap_err();
    assert_eq!(error, MeterError::Closed("inc1".to_owned()));
}

#[test]
fn after_its_last_sample_an_incarnation_uses_nothing() {
    let last = Sample { is_last: true, ..sample(at(160), vcpu(7)) };
    let (record, position) = advance(&begin(), last.clone()).unwrap();
    assert!(record.is_last);
    assert_eq!(advance(&position, last), Err(MeterError::Closed("inc1".to_owned())));
}

#[test]
fn samples_of_another_incarnation_or_from_before_are_refused() {
    let other = Sample { incarnation: "inc2".to_owned(), ..sample(at(160), vcpu(1)) };
    assert!(matches!(advance(&begin(), other), Err(MeterError::OtherIncarnation { .. })));
    assert!(matches!(advance(&begin(), sample(at(99), vcpu(1))), Err(MeterError::Older { .. })));
}

#[test]
fn sizes_grow_with_the_time_they_were_held() {
    let volume_bytes = BTreeMap::from([("data".to_owned(), 1 << 30)]);
    let levels = Levels { mem_mib: 512, volume_bytes };
    let mut counters = Counters::default();
    levels.accrue(&begin(), &at(110), &mut counters);
    let (first, position) = advance(&begin(), sample(at(110), counters)).unwrap();
    assert_eq!(Meter::MemMibNs.quantity(first.used.get(&Meter::MemMibNs).unwrap()), "5120");
    let volume = Meter::VolumeByteNs("data".to_owned());
    assert_eq!(volume.quantity(first.used.get(&volume).unwrap()), "10");
    // Detached, and then attached again: its total goes on.
    let mut counters = Counters::default();
    Levels { mem_mib: 512, ..Levels::default() }.accrue(&position, &at(120), &mut counters);
    let (second, position) = advance(&position, sample(at(120), counters)).unwrap();
    assert_eq!(second.used.get(&volume), None);
    let mut counters = Counters::default();
    levels.accrue(&position, &at(125), &mut counters);
    let (third, _) = advance(&position, sample(at(125), counters)).unwrap();
    assert_eq!(volume.quantity(third.used.get(&volume).unwrap()), "5");
    // Nothing is known of the time across a reboot.
    let mut counters = Counters::default();
    levels.accrue(&position, &Instant { boot_id: "boot-2".to_owned(), ..at(500) }, &mut counters);
    assert!(counters.is_empty());
}

#[test]
fn what_an_earlier_version_stored_is_still_read() {
    let position = r#"{"incarnation":"i","owner":{"tenant":"t","vm":"v"},"next_seq":3,
        "at":{"boot_id":"b","boottime_ns":1,"wall_ns":2},"end_ns":2,"unheard_of":1}"#;
    assert_eq!(serde_json::from_str::<Position>(position).unwrap().totals, Counters::default());
    let record = r#"{"id":"i-0","incarnation":"i","seq":0,"owner":{"tenant":"t","vm":"v"},
        "start_ns":1,"end_ns":2,"unheard_of":1}"#;
    assert_eq!(serde_json::from_str::<Record>(record).unwrap().clock, ClockState::Steady);
}

/// What may happen between two samples.
#[derive(Clone, Debug)]
enum Event {
    /// A sample that is stored, after so many nanoseconds; meters in the mask can't be read.
    Stored { elapsed_ns: u64, grown: [u64; 4], unread: u8 },
    /// One that is lost with the agent before it was stored.
    Lost { elapsed_ns: u64, grown: [u64; 4] },
    /// One whose record is computed and stored twice.
    Repeated { elapsed_ns: u64, grown: [u64; 4] },
    /// Somebody sets the wall clock.
    WallSet { by_ns: i64 },
}

fn event() -> impl Strategy<Value = Event> {
    let elapsed = || prop_oneof![Just(0), 0..100 * SECOND_NS];
    let grown = || prop::array::uniform4(prop_oneof![Just(0), 0..u64::MAX / 1000]);
    prop_oneof![
        4 => (elapsed(), grown(), 0..16u8)
            .prop_map(|(elapsed_ns, grown, unread)| Event::Stored { elapsed_ns, grown, unread }),
        2 => (elapsed(), grown()).prop_map(|(elapsed_ns, grown)| Event::Lost { elapsed_ns, grown }),
        1 => (elapsed(), grown()).prop_map(|(elapsed_ns, grown)| Event::Repeated { elapsed_ns, grown }),
        1 => (-1_000_000_000_000..1_000_000_000_000i64).prop_map(|by_ns| Event::WallSet { by_ns }),
    ]
}

/// The VM, as it is whether somebody looks or not.
struct World {
    at: Instant,
    totals: [u128; 4],
}

impl World {
    fn meters() -> [Meter; 4] {
        let volume = Meter::VolumeByteNs("data".to_owned());
        [Meter::VcpuNs, Meter::DiskReads, volume, Meter::NetTxBytes(EgressClass::Domestic)]
    }

    fn go_on(&mut self, elapsed_ns: u64, grown: [u64; 4]) {
        self.at.boottime_ns += elapsed_ns;
        self.at.wall_ns += elapsed_ns;
        for (total, grown) in self.totals.iter_mut().zip(grown) {
            *total += u128::from(grown);
        }
    }

    fn sample(&self, unread: u8) -> Sample {
        let mut counters = Counters::default();
        for (n, (meter, total)) in Self::meters().into_iter().zip(self.totals).enumerate() {
            if unread & (1 << n) == 0 {
                counters.set(meter, total);
            }
        }
        sample(self.at.clone(), counters)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_add_up_to_the_counters_and_their_periods_tile_whatever_happens(
        events in prop::collection::vec(event(), 0..40),
        reboots in any::<bool>(),
    ) {
        let mut world = World { at: at(100), totals: [0; 4] };
        // What the store holds.
        let (mut position, mut records) = (begin(), BTreeMap::<String, Record>::new());
        for event in events {
            match event {
                Event::WallSet { by_ns } => world.at.wall_ns = world.at.wall_ns.saturating_add_signed(by_ns),
                Event::Lost { elapsed_ns, grown } => {
                    world.go_on(elapsed_ns, grown);
                    advance(&position, world.sample(0)).unwrap();
                }
                Event::Stored { elapsed_ns, grown, unread } => {
                    world.go_on(elapsed_ns, grown);
                    let (record, next) = advance(&position, world.sample(unread)).unwrap();
                    prop_assert!(records.insert(record.id.clone(), record).is_none());
                    position = next;
                }
                Event::Repeated { elapsed_ns, grown } => {
                    world.go_on(elapsed_ns, grown);
                    let once = advance(&position, world.sample(0)).unwrap();
                    let twice = advance(&position, world.sample(0)).unwrap();
                    prop_assert_eq!(&once, &twice);
                    for (record, next) in [once, twice] {
                        records.insert(record.id.clone(), record);
                        position = next;
                    }
                }
            }
        }
        let last = Sample { is_last: true, ..world.sample(0) };
        let (record, next) = advance(&position, last).unwrap();
        records.insert(record.id.clone(), record);
        let mut records: Vec<_> = records.into_values().collect();
        if reboots {
            // It comes while the last sample is lost.
            records.retain(|record| !record.is_last);
            let now = Instant { boot_id: "boot-2".to_owned(), boottime_ns: 1, wall_ns: world.at.wall_ns };
            let (record, next) = advance(&position, sample(now, Counters::default())).unwrap();
            prop_assert!(next.is_closed);
            prop_assert_eq!(next.totals, position.totals.clone());
            records.push(record);
        }
        records.sort_by_key(|record| record.seq);

        let reached = if reboots { position.totals } else { next.totals };
        for (n, meter) in World::meters().into_iter().enumerate() {
            let sum: u128 = records.iter().filter_map(|record| record.used.get(&meter)).sum();
            prop_assert_eq!(sum, reached.get(&meter).unwrap_or(0));
            if !reboots {
                prop_assert_eq!(sum, world.totals[n]);
            }
        }
        let mut end_ns = at(100).wall_ns;
        for (n, record) in records.iter().enumerate() {
            prop_assert_eq!(record.seq, u64::try_from(n).unwrap());
            prop_assert_eq!(record.start_ns, end_ns);
            prop_assert!(record.end_ns >= record.start_ns);
            end_ns = record.end_ns;
        }
        if !reboots {
            let duration_ns: u64 = records.iter().map(|record| record.duration_ns).sum();
            prop_assert_eq!(duration_ns, world.at.boottime_ns - at(100).boottime_ns);
        }
    }
}
