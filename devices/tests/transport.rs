//! What a driver may count on, over both transports (virtio 1.2 §2.1, §2.2, §3.1, §4.1, §4.2).

use std::sync::Arc;

use devices::mem::{GuestAddress, GuestMemoryMmap, Ram};
use devices::testing::fake::{CONFIG, FEATURES, FakeDevice, Probe, QUEUE_SIZES};
use devices::testing::transport::{QueueLayout, TransportDriver, Via};
use devices::virtio::ConfigSpace;
use devices::virtio::spec::{feature, interrupt, status};

struct Rig {
    via: Via,
    driver: TransportDriver,
    probe: Probe,
    config: Arc<ConfigSpace>,
}

/// RAM from 64 KiB to 1 MiB.
fn ram() -> Ram {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1_0000), 0xf_0000)]).expect("small and disjoint"))
}

/// Runs `test` over each transport.
fn over_each(test: impl Fn(&Rig)) {
    for via in Via::ALL {
        let (device, probe, config) = FakeDevice::new();
        test(&Rig { via, driver: TransportDriver::new(via, device, ram()), probe, config });
    }
}

const GOOD: QueueLayout = QueueLayout { size: 16, descriptors: 0x1_0000, driver: 0x1_1000, device: 0x1_2000 };
const READY: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
const BROKEN: u8 = READY | status::DEVICE_NEEDS_RESET;

#[test]
fn a_driver_that_follows_the_standard_gets_what_it_negotiated() {
    over_each(|rig| {
        assert_eq!(rig.driver.offered(), FEATURES);
        let wanted = feature::VERSION_1 | feature::EVENT_IDX;
        assert!(rig.driver.initialise(wanted, &[GOOD, GOOD]), "{:?}", rig.via);
        assert_eq!(rig.driver.status(), READY);
        let history = rig.probe.history();
        assert_eq!((history.starts, history.features), (1, wanted));
        assert_eq!(history.sizes, [Some(16), Some(16)]);
    });
}

#[test]
fn queues_that_the_driver_left_alone_are_not_granted() {
    over_each(|rig| {
        assert!(rig.driver.initialise(feature::VERSION_1, &[GOOD]));
        assert_eq!(rig.probe.history().sizes, [Some(16), None]);
        assert_eq!(rig.probe.history().served, [0], "each enabled queue is served once after the start");
    });
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    over_each(|rig| {
        for wanted in [0, FEATURES & !feature::VERSION_1, FEATURES | 1 << 6, FEATURES | 1 << 63] {
            assert!(!rig.driver.negotiate(wanted), "{wanted:#x}");
            assert!(!rig.driver.driver_ok());
        }
        assert!(rig.driver.negotiate(FEATURES));
        assert_eq!(rig.probe.history().starts, 0);
    });
}

#[test]
fn features_are_frozen_once_they_are_agreed_on() {
    over_each(|rig| {
        assert!(rig.driver.negotiate(feature::VERSION_1));
        rig.driver.want(FEATURES);
        assert!(rig.driver.driver_ok());
        assert_eq!(rig.probe.history().features, feature::VERSION_1);
    });
}

#[test]
fn queues_are_frozen_before_features_ok_and_after_driver_ok() {
    over_each(|rig| {
        rig.driver.set_queue(0, &GOOD);
        assert!(rig.driver.initialise(feature::VERSION_1, &[]));
        assert_eq!(rig.probe.history().sizes, [None, None]);
        rig.driver.set_queue(0, &GOOD);
        rig.driver.kick(0);
        assert!(rig.probe.history().served.is_empty());
    });
}

#[test]
fn queue_sizes_are_offered_and_absent_queues_have_size_zero() {
    over_each(|rig| {
        let sizes = [0, 1, 2, 0x100, u16::MAX].map(|queue| rig.driver.queue_size_max(queue));
        assert_eq!(sizes, [QUEUE_SIZES[0], QUEUE_SIZES[1], 0, 0, 0]);
    });
}

#[test]
fn queues_that_make_no_sense_need_a_reset_and_then_all_is_well_again() {
    let bad = [
        QueueLayout { size: 0, ..GOOD },
        QueueLayout { size: 3, ..GOOD },
        QueueLayout { size: 512, ..GOOD },
        QueueLayout { descriptors: 0, ..GOOD },
        QueueLayout { descriptors: 0x1_0008, ..GOOD },
        QueueLayout { driver: 0x1_1001, ..GOOD },
        QueueLayout { device: 0x1_2002, ..GOOD },
        QueueLayout { driver: 0xf_fff0, ..GOOD },
        QueueLayout { device: u64::MAX - 3, ..GOOD },
        QueueLayout { descriptors: 1 << 63, ..GOOD },
    ];
    over_each(|rig| {
        for layout in bad {
            let before = rig.driver.interrupts();
            assert!(!rig.driver.initialise(FEATURES, &[layout]), "{layout:?}");
            assert_eq!(rig.driver.status(), BROKEN);
            assert_eq!(rig.driver.interrupts(), before + 1, "the driver is told");
            assert_eq!(rig.driver.acknowledge(), interrupt::CONFIG);
            rig.driver.kick(0);
        }
        assert_eq!(rig.probe.history().starts, 0);
        assert!(rig.driver.initialise(FEATURES, &[GOOD]));
    });
}

#[test]
fn a_device_that_can_not_start_needs_a_reset_and_may_start_later() {
    over_each(|rig| {
        rig.probe.history().refuse_start = true;
        assert!(!rig.driver.initialise(FEATURES, &[GOOD]));
        assert_eq!(rig.driver.status(), BROKEN);
        assert!(rig.driver.initialise(FEATURES, &[GOOD]));
    });
}

#[test]
fn kicks_reach_the_enabled_queue_and_no_other() {
    over_each(|rig| {
        rig.driver.kick(0);
        assert!(rig.driver.initialise(FEATURES, &[GOOD]));
        rig.probe.history().served.clear();
        for queue in [1, 0, 2, 500] {
            rig.driver.kick(queue);
        }
        assert_eq!(rig.probe.history().served, [0]);
    });
}

#[test]
fn used_buffers_raise_the_interrupt_of_their_queue() {
    over_each(|rig| {
        assert!(rig.driver.initialise(FEATURES, &[GOOD, GOOD]));
        rig.driver.acknowledge();
        let before = rig.driver.interrupts();
        rig.driver.kick(1);
        assert_eq!(rig.driver.interrupts(), before + 1);
        match rig.driver.sink() {
            Some(sink) => assert_eq!([0, 1, 2].map(|vector| sink.delivered(vector)), [0, 1, 2]),
            None => assert_eq!(rig.driver.acknowledge(), interrupt::QUEUE),
        }
        assert_eq!(rig.driver.acknowledge(), 0);
    });
}

#[test]
fn a_reset_in_the_middle_of_everything_forgets_the_driver() {
    over_each(|rig| {
        assert!(rig.driver.initialise(FEATURES, &[GOOD, GOOD]));
        rig.driver.kick(0);
        rig.probe.history().interrupt.as_ref().unwrap().config();
        rig.driver.reset();
        assert_eq!((rig.driver.status(), rig.driver.acknowledge()), (0, 0));
        assert_eq!(rig.probe.history().stops, 1);
        assert!(!rig.driver.owner.runs());
        rig.driver.kick(0);
        assert!(rig.driver.negotiate(feature::VERSION_1));
        assert!(rig.driver.driver_ok());
        let history = rig.probe.history();
        assert_eq!((history.starts, history.features), (2, feature::VERSION_1));
        assert_eq!(history.sizes, [None, None]);
    });
}

#[test]
fn the_machine_can_reset_a_device_as_its_driver_can() {
    over_each(|rig| {
        assert!(rig.driver.initialise(FEATURES, &[GOOD]));
        rig.driver.machine_reset();
        assert_eq!((rig.driver.status(), rig.probe.history().stops), (0, 1));
        assert!(rig.driver.initialise(FEATURES, &[GOOD]));
    });
}

#[test]
fn a_device_broken_by_its_driver_says_so_and_hears_no_more_kicks_until_reset() {
    over_each(|rig| {
        assert!(rig.driver.initialise(FEATURES, &[GOOD]));
        rig.driver.acknowledge();
        rig.probe.history().break_next = true;
        rig.driver.kick(0);
        assert_eq!(rig.driver.status(), BROKEN);
        assert_eq!(rig.driver.acknowledge() & interrupt::CONFIG, interrupt::CONFIG);
        let served = rig.probe.history().served.len();
        rig.driver.kick(0);
        assert_eq!(rig.probe.history().served.len(), served);
        assert!(rig.driver.initialise(FEATURES, &[GOOD]));
    });
}

#[test]
fn a_device_whose_thread_died_is_offered_to_no_driver_again() {
    over_each(|rig| {
        assert!(rig.driver.initialise(FEATURES, &[GOOD]));
        rig.driver.owner.lose();
        rig.driver.reset();
        assert_eq!(rig.driver.status(), 0, "a driver that waits for the reset does not hang");
        assert!(!rig.driver.negotiate(FEATURES));
    });
}

#[test]
fn a_device_that_gave_up_on_its_own_hears_no_more_kicks() {
    over_each(|rig| {
        assert!(rig.driver.initialise(FEATURES, &[GOOD]));
        rig.probe.history().interrupt.as_ref().unwrap().needs_reset();
        assert_eq!(rig.driver.status(), BROKEN);
        rig.probe.history().served.clear();
        rig.driver.kick(0);
        assert!(rig.probe.history().served.is_empty());
    });
}

#[test]
fn status_bits_taken_back_need_a_reset() {
    over_each(|rig| {
        assert!(rig.driver.initialise(FEATURES, &[GOOD]));
        rig.driver.set_status(status::ACKNOWLEDGE);
        assert_eq!(rig.driver.status(), BROKEN);
    });
}

#[test]
fn the_configuration_reads_in_any_width_zeros_past_its_end_and_a_new_generation_when_it_changed() {
    over_each(|rig| {
        for width in [1, 2, 4, 8] {
            for offset in 0..=CONFIG.len() {
                let mut data = [0xee; 8];
                rig.driver.read_config(offset as u64, &mut data[..width]);
                let expected = CONFIG[offset..].iter().chain(std::iter::repeat(&0)).take(width);
                assert!(data[..width].iter().eq(expected), "{width} bytes at {offset}");
            }
        }
        let before = rig.driver.config_generation();
        rig.config.update(0, b"X");
        assert_ne!(rig.driver.config_generation(), before);
        let mut data = [0; 1];
        rig.driver.read_config(0, &mut data);
        assert_eq!(&data, b"X");
    });
}

#[test]
fn a_driver_switches_the_cache_mode_once_it_agreed_on_that_and_a_reset_forgets_it() {
    use devices::limiter::LimiterSpec;
    use devices::testing::block::MemBackend;
    use devices::virtio::block::{Block, BlockOptions, Cache, F_CONFIG_WCE, F_FLUSH};

    const WRITEBACK: u64 = 0x20;
    for via in Via::ALL {
        let disk = MemBackend::zeroed(8);
        let options = BlockOptions {
            name: "test".into(),
            read_only: false,
            discard: true,
            cache: Cache::Writeback,
            serial: String::new(),
            limits: LimiterSpec::default(),
            group: None,
            queues: std::num::NonZeroU16::MIN,
        };
        let driver = TransportDriver::new(via, Box::new(Block::new(Box::new(disk.clone()), &options)), ram());
        let mode = || {
            let mut byte = [0];
            driver.read_config(WRITEBACK, &mut byte);
            byte[0]
        };
        let switch = |to: u8| driver.write_config(WRITEBACK, &[to]);
        assert!(driver.initialise(feature::VERSION_1 | F_FLUSH, &[GOOD]));
        switch(0);
        assert_eq!(mode(), 1, "{via:?}: it was not agreed on");
        driver.reset();
        switch(0);
        assert_eq!(mode(), 1, "{via:?}: nothing was agreed on yet");
        assert!(driver.initialise(feature::VERSION_1 | F_FLUSH | F_CONFIG_WCE, &[GOOD]));
        let flushes = disk.platter().flushes;
        switch(0);
        assert_eq!((mode(), disk.platter().flushes), (0, flushes + 1), "{via:?}");
        driver.reset();
        assert_eq!(mode(), 1, "{via:?}");
    }
}
