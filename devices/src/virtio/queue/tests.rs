use proptest::prelude::*;

use super::*;
use crate::mem::Ram;
use crate::testing::queue::{Buf, Driver, INDIRECT, NEXT, WRITE, give, take};
use crate::testing::ram;

const SIZE: u16 = 8;
const DATA: u64 = 0x4000;
const TABLE: u64 = 0x8000;
const RAM_BYTES: usize = 0x1_0000;

struct Rig {
    ram: Ram,
    driver: Driver,
    ring: Ring,
    chain: Chain,
}

impl Rig {
    fn new(features: u64) -> Self {
        let ram = ram::flat(RAM_BYTES);
        let driver = Driver::new(&ram, 0x1000, SIZE);
        let ring = Ring::new(driver.queue(), features);
        Self { ram, driver, ring, chain: Chain::with_room_for(SIZE) }
    }

    fn pop(&mut self) -> Result<bool, RingError> {
        self.ring.pop(&self.ram, &mut self.chain)
    }

    fn chain_error(&mut self) -> ChainError {
        match self.pop() {
            Err(RingError::Chain(error)) => error,
            other => panic!("expected a refused chain, got {other:?}"),
        }
    }
}

#[test]
fn a_chain_comes_out_as_it_was_linked_and_is_answered_once() {
    let mut rig = Rig::new(0);
    let head = rig.driver.send(&[
        give(DATA, 16),
        give(DATA + 16, 0),
        take(DATA + 0x100, 512),
        take(DATA + 0x400, 1),
    ]);
    assert!(rig.pop().unwrap());
    assert_eq!(rig.chain.head(), head);
    assert_eq!(rig.chain.readable().iter().map(|s| s.len).collect::<Vec<_>>(), [16, 0]);
    assert_eq!(
        rig.chain.writable().iter().map(|s| s.addr.0).collect::<Vec<_>>(),
        [DATA + 0x100, DATA + 0x400]
    );
    assert_eq!((rig.chain.readable_bytes(), rig.chain.writable_bytes()), (16, 513));
    assert!(!rig.pop().unwrap());
    rig.ring.finish(&rig.ram, head, 513).unwrap();
    assert_eq!(rig.driver.used(), Some((u32::from(head), 513)));
    assert_eq!(rig.driver.used(), None);
}

#[test]
fn an_indirect_table_reads_like_a_direct_chain() {
    let mut rig = Rig::new(0);
    let head = rig.driver.link_indirect(TABLE, &[give(DATA, 16), take(DATA + 16, 32)]);
    rig.driver.publish(head);
    assert!(rig.pop().unwrap());
    assert_eq!((rig.chain.head(), rig.chain.readable().len(), rig.chain.writable().len()), (head, 1, 1));
}

#[test]
fn filling_a_chain_again_allocates_nothing() {
    let mut rig = Rig::new(0);
    let before = rig.chain.readable().as_ptr();
    for _ in 0..100 {
        let head = rig.driver.send(&[give(DATA, 16); SIZE as usize]);
        assert!(rig.pop().unwrap());
        rig.ring.finish(&rig.ram, head, 0).unwrap();
    }
    assert_eq!(rig.chain.readable().as_ptr(), before);
}

#[test]
fn a_chain_that_was_put_back_comes_again() {
    let mut rig = Rig::new(0);
    let first = rig.driver.send(&[give(DATA, 1)]);
    rig.driver.send(&[give(DATA, 2)]);
    assert!(rig.pop().unwrap());
    rig.ring.undo_pop();
    assert!(rig.pop().unwrap());
    assert_eq!(rig.chain.head(), first);
}

#[test]
fn an_available_index_too_far_ahead_is_refused() {
    let mut rig = Rig::new(0);
    rig.driver.publish_index(SIZE + 1);
    assert!(matches!(rig.pop(), Err(RingError::AvailIndex)));
}

#[test]
fn an_available_index_that_goes_back_is_refused() {
    let mut rig = Rig::new(0);
    rig.driver.send(&[give(DATA, 1)]);
    assert!(rig.pop().unwrap());
    rig.driver.publish_index(0);
    assert!(matches!(rig.pop(), Err(RingError::AvailIndex)));
}

#[test]
fn a_head_that_is_no_descriptor_is_refused() {
    let mut rig = Rig::new(0);
    rig.driver.publish(SIZE);
    assert!(matches!(rig.pop(), Err(RingError::BadHead { head: SIZE, size: SIZE })));
}

#[test]
fn a_loop_is_refused_after_as_many_links_as_the_queue_has() {
    let mut rig = Rig::new(0);
    rig.driver.write_desc(0, DATA, 1, NEXT, 1);
    rig.driver.write_desc(1, DATA, 1, NEXT, 0);
    rig.driver.publish(0);
    assert_eq!(rig.chain_error(), ChainError::Truncated { head: 0, links: SIZE.into() });
}

#[test]
fn a_link_to_nowhere_is_refused() {
    let mut rig = Rig::new(0);
    rig.driver.write_desc(0, DATA, 1, NEXT, SIZE);
    rig.driver.publish(0);
    assert_eq!(rig.chain_error(), ChainError::Truncated { head: 0, links: 1 });
}

#[test]
fn four_gib_in_one_chain_are_refused() {
    let mut rig = Rig::new(0);
    rig.driver.send(&[take(DATA, u32::MAX), take(DATA, 1)]);
    assert_eq!(rig.chain_error(), ChainError::Truncated { head: 0, links: 1 });
}

#[test]
fn a_readable_descriptor_after_a_writable_one_is_refused() {
    let mut rig = Rig::new(0);
    rig.driver.send(&[give(DATA, 1), take(DATA, 1), give(DATA, 1)]);
    assert_eq!(rig.chain_error(), ChainError::Order { head: 0 });
}

#[test]
fn a_table_within_a_table_is_refused() {
    let mut rig = Rig::new(0);
    rig.driver.write_desc_at(TABLE, 0, TABLE, 16, INDIRECT, 0);
    rig.driver.write_desc(0, TABLE, 16, INDIRECT, 0);
    rig.driver.publish(0);
    assert_eq!(rig.chain_error(), ChainError::Truncated { head: 0, links: 0 });
}

#[test]
fn tables_of_odd_zero_and_huge_length_are_refused() {
    for len in [0, 15, 17, 16 * 65_536, u32::MAX] {
        let mut rig = Rig::new(0);
        rig.driver.write_desc(0, TABLE, len, INDIRECT, 0);
        rig.driver.publish(0);
        assert_eq!(rig.chain_error(), ChainError::Truncated { head: 0, links: 0 }, "length {len}");
    }
}

#[test]
fn a_table_outside_ram_is_refused() {
    let mut rig = Rig::new(0);
    rig.driver.write_desc(0, u64::MAX - 15, 16, INDIRECT, 0);
    rig.driver.publish(0);
    assert_eq!(rig.chain_error(), ChainError::Truncated { head: 0, links: 0 });
}

#[test]
fn a_table_with_more_links_than_the_queue_is_refused() {
    let mut rig = Rig::new(0);
    let head = rig.driver.link_indirect(TABLE, &[give(DATA, 1); SIZE as usize + 1]);
    rig.driver.publish(head);
    assert_eq!(rig.chain_error(), ChainError::TooLong { head, max: SIZE.into() });
}

#[test]
fn segments_outside_ram_do_not_resolve() {
    let ram = ram::flat(RAM_BYTES);
    let end = RAM_BYTES as u64;
    for (addr, len) in [(end, 1), (end - 1, 2), (0, u32::MAX), (u64::MAX, 2), (1 << 63, 1)] {
        let segments = [Segment { addr: vm_memory::GuestAddress(addr), len }];
        assert_eq!(resolve(&ram, &segments, &mut Vec::new()), Err(ChainError::OutsideRam { addr, len }));
    }
    let empty = [Segment { addr: vm_memory::GuestAddress(u64::MAX), len: 0 }];
    assert_eq!(resolve(&ram, &empty, &mut Vec::new()), Ok(()));
}

#[test]
fn a_segment_over_two_adjoining_regions_resolves_to_both() {
    let ram = ram::regions(&[(0, 0x1000), (0x1000, 0x1000), (0x3000, 0x1000)]);
    let segment = |addr, len| [Segment { addr: vm_memory::GuestAddress(addr), len }];
    let mut slices = Vec::new();
    resolve(&ram, &segment(0xff0, 0x20), &mut slices).unwrap();
    assert_eq!(slices.iter().map(vm_memory::VolatileSlice::len).collect::<Vec<_>>(), [0x10, 0x10]);
    copy_in(&slices, 8, &[7; 16]);
    assert_eq!(ram::read(&ram, 0xff0, 32), [[0; 8], [7; 8], [7; 8], [0; 8]].concat());
    assert!(resolve(&ram, &segment(0x1ff0, 0x20), &mut slices).is_err());
}

#[test]
fn advance_and_truncate_cut_where_they_are_told() {
    let ram = ram::flat(0x100);
    let segments = [(0u64, 4u32), (0x10, 4), (0x20, 4)]
        .map(|(addr, len)| Segment { addr: vm_memory::GuestAddress(addr), len });
    for n in 0..=14usize {
        let mut slices = Vec::new();
        resolve(&ram, &segments, &mut slices).unwrap();
        assert_eq!(total_len(advance(&mut slices.clone(), n)), 12usize.saturating_sub(n));
        assert_eq!(total_len(truncate(&mut slices, n)), n.min(12));
    }
}

#[test]
fn the_used_ring_may_end_with_ram() {
    let end = 0x4000u64;
    let ram = ram::flat(0x4000);
    let mut driver = Driver::new(&ram, (end - Driver::footprint(SIZE)) & !0xf, SIZE);
    assert!(driver.end() <= end && driver.end() > end - 16);
    let mut ring = Ring::new(driver.queue(), F_EVENT_IDX);
    let mut chain = Chain::with_room_for(SIZE);
    for _ in 0..3 * SIZE {
        let head = driver.send(&[take(0, 1)]);
        assert!(ring.pop(&ram, &mut chain).unwrap());
        ring.finish(&ram, head, 1).unwrap();
        assert_eq!(driver.used(), Some((head.into(), 1)));
        assert!(!ring.rearm(&ram).unwrap());
    }
}

#[test]
fn without_event_idx_kicks_are_off_while_draining_and_on_after() {
    let mut rig = Rig::new(0);
    rig.ring.suppress_kicks(&rig.ram).unwrap();
    assert!(rig.driver.kicks_suppressed());
    assert!(!rig.ring.rearm(&rig.ram).unwrap());
    assert!(!rig.driver.kicks_suppressed());
    rig.driver.send(&[give(DATA, 1)]);
    assert!(rig.ring.rearm(&rig.ram).unwrap(), "a chain that came in before the rearm is noticed");
}

#[test]
fn with_event_idx_rearming_asks_for_a_kick_of_the_next_chain() {
    let mut rig = Rig::new(F_EVENT_IDX);
    rig.driver.send(&[give(DATA, 1)]);
    assert!(rig.pop().unwrap());
    assert!(!rig.ring.rearm(&rig.ram).unwrap());
    assert_eq!(rig.driver.avail_event(), 1);
    assert!(!rig.driver.kicks_suppressed());
}

#[test]
fn no_interrupt_flag_is_obeyed() {
    let mut rig = Rig::new(0);
    for wanted in [false, true] {
        rig.driver.want_interrupts(wanted);
        let head = rig.driver.send(&[give(DATA, 1)]);
        assert!(rig.pop().unwrap());
        rig.ring.finish(&rig.ram, head, 0).unwrap();
        assert_eq!(rig.ring.wants_interrupt(&rig.ram).unwrap(), wanted);
    }
}

#[test]
fn nothing_finished_is_no_interrupt() {
    for features in [0, F_EVENT_IDX] {
        assert!(!{ Rig::new(features) }.interrupt());
    }
}

impl Rig {
    fn interrupt(&mut self) -> bool {
        self.ring.wants_interrupt(&self.ram).unwrap()
    }
}

#[test]
fn with_event_idx_an_interrupt_comes_when_the_used_index_passes_the_event() {
    let mut rig = Rig::new(F_EVENT_IDX);
    rig.driver.set_used_event(2);
    let mut answers = Vec::new();
    for _ in 0..4 {
        let head = rig.driver.send(&[give(DATA, 1)]);
        assert!(rig.pop().unwrap());
        rig.ring.finish(&rig.ram, head, 0).unwrap();
        answers.push(rig.interrupt());
    }
    assert_eq!(answers, [false, false, true, false]);
}

#[test]
fn chains_finished_together_become_visible_at_once_and_count_for_event_idx() {
    let mut rig = Rig::new(F_EVENT_IDX);
    rig.driver.set_used_event(1);
    let heads: Vec<_> = (0..4).map(|_| rig.driver.send(&[take(DATA, 8)])).collect();
    for _ in &heads {
        assert!(rig.pop().unwrap());
    }
    rig.ring.finish_together(&rig.ram, heads.iter().map(|&head| (head, 8))).unwrap();
    assert_eq!(
        heads.iter().map(|&head| Some((head.into(), 8))).collect::<Vec<_>>(),
        [(); 4].map(|()| rig.driver.used())
    );
    assert_eq!(rig.driver.used(), None);
    assert!(rig.interrupt());
}

proptest! {
    #[test]
    fn garbage_rings_end_in_bounded_work_and_touch_only_the_used_ring(
        seed: u64, indirect: bool, index in 0u16..=SIZE,
    ) {
        let mut rig = Rig::new(if seed & 1 == 0 { F_EVENT_IDX } else { 0 });
        let mut chance = crate::testing::seed::Seed::new(seed);
        for i in 0..SIZE {
            for table in [0x1000, TABLE] {
                let flags = u16::try_from(chance.below(8)).unwrap() & if indirect { 7 } else { 3 };
                let addr = chance.pick(&[TABLE, DATA, chance.clone().draw(), RAM_BYTES as u64 - 1]);
                let len = u32::try_from(chance.pick(&[16, 32, 128, chance.clone().below(1 << 32)])).unwrap();
                let next = u16::try_from(chance.below(u64::from(SIZE) + 1)).unwrap();
                rig.driver.write_desc_at(table, i, addr, len, flags, next);
            }
            rig.driver.publish(u16::try_from(chance.below(u64::from(SIZE) + 1)).unwrap());
        }
        rig.driver.publish_index(index);
        let before = ram::read(&rig.ram, 0, RAM_BYTES);
        let mut turns = 0;
        while let Ok(true) = rig.pop() {
            turns += 1;
            prop_assert!(rig.chain.readable().len() + rig.chain.writable().len() <= SIZE.into());
            let mut slices = Vec::new();
            if resolve(&rig.ram, rig.chain.readable(), &mut slices).is_ok() {
                prop_assert_eq!(total_len(&slices), rig.chain.readable_bytes() as usize);
            }
            rig.ring.finish(&rig.ram, rig.chain.head(), 0).unwrap();
        }
        prop_assert!(turns <= index);
        let after = ram::read(&rig.ram, 0, RAM_BYTES);
        let used = usize::try_from(rig.driver.end()).unwrap() - (6 + 8 * usize::from(SIZE));
        prop_assert!(before[..used] == after[..used]);
        prop_assert!(before[used + 6 + 8 * usize::from(SIZE)..] == after[used + 6 + 8 * usize::from(SIZE)..]);
    }

    #[test]
    fn well_formed_chains_of_any_shape_come_out_whole(
        lens in prop::collection::vec((0u32..2000, any::<bool>()), 1..=usize::from(SIZE)), indirect: bool,
    ) {
        let mut rig = Rig::new(0);
        let mut bufs: Vec<Buf> = lens.iter().map(|&(len, writable)| Buf { addr: DATA, len, writable }).collect();
        bufs.sort_by_key(|buf| buf.writable);
        let head = if indirect { rig.driver.link_indirect(TABLE, &bufs) } else { rig.driver.link(&bufs) };
        rig.driver.publish(head);
        prop_assert!(rig.pop().unwrap());
        let sum = |writable| bufs.iter().filter(|buf| buf.writable == writable).map(|buf| buf.len).sum::<u32>();
        prop_assert_eq!((rig.chain.readable_bytes(), rig.chain.writable_bytes()), (sum(false), sum(true)));
        prop_assert_eq!(rig.chain.readable().len(), bufs.iter().filter(|buf| !buf.writable).count());
    }
}

#[test]
fn flags_of_the_guest_side_are_those_of_the_standard() {
    assert_eq!((NEXT, WRITE, INDIRECT), (1, 2, 4)); // virtio 1.2 §2.7.5
}
