//! What a hostile driver does to the registers harms nobody, over both transports.

use std::sync::Arc;

use devices::mem::{GuestAddress, GuestMemoryMmap, Ram};
use devices::testing::fake::{FEATURES, FakeDevice};
use devices::testing::transport::{PCI_MSIX_CONTROL, PCI_TABLE, QueueLayout, TransportDriver, Via};
use devices::virtio::spec::{mmio, pci::common, status};
use devices::virtio::transport::pci::BAR_SIZE;
use proptest::prelude::*;

const GOOD: QueueLayout = QueueLayout { size: 16, descriptors: 0x1_0000, driver: 0x1_1000, device: 0x1_2000 };

fn ram() -> Ram {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1_0000), 0x1_0000)]).expect("small and disjoint"))
}

fn driver(via: Via) -> TransportDriver {
    TransportDriver::new(via, FakeDevice::new().0, ram())
}

/// Bytes of the window.
fn window_len(via: Via) -> u64 {
    match via {
        Via::Mmio => 0x1000,
        Via::Pci => u64::from(BAR_SIZE),
    }
}

/// Whatever happened, an honest driver can use the device afterwards.
fn assert_usable(driver: &TransportDriver) {
    assert!(driver.initialise(FEATURES, &[GOOD]));
}

#[test]
fn every_offset_can_be_written_and_read_in_every_width() {
    for via in Via::ALL {
        for fill in [0x00, 0x0f, 0xff] {
            let driver = driver(via);
            assert_usable(&driver);
            for offset in 0..window_len(via) + 8 {
                for width in [1, 2, 4, 8] {
                    let mut data = [fill; 8];
                    driver.window().write(offset, &data[..width]);
                    driver.window().read(offset, &mut data[..width]);
                }
            }
            assert_usable(&driver);
        }
    }
}

#[test]
fn registers_of_the_wrong_width_read_zeros_and_write_nothing() {
    let mmio = driver(Via::Mmio);
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4)] {
        let mut data = [0xee; 8];
        mmio.window().read(offset, &mut data[..width]);
        assert_eq!(data[..width], [0; 8][..width], "{width} bytes at {offset}");
    }
    mmio.window().write(mmio::STATUS, &[status::ACKNOWLEDGE]);
    assert_eq!(mmio.status(), 0);
    let pci = driver(Via::Pci);
    for (offset, width) in [(common::NUM_QUEUES, 1), (common::NUM_QUEUES, 4), (common::DEVICE_FEATURE, 2)] {
        let mut data = [0xee; 8];
        pci.window().read(offset, &mut data[..width]);
        assert_eq!(data[..width], [0; 8][..width], "{width} bytes at {offset}");
    }
    pci.window().write(common::DEVICE_STATUS, &[status::ACKNOWLEDGE, 0, 0, 0]);
    assert_eq!(pci.status(), 0);
}

#[test]
fn every_status_value_can_be_written_in_every_state() {
    for via in Via::ALL {
        let driver = driver(via);
        for stage in 0..5 {
            for value in 0..=u8::MAX {
                driver.reset();
                match stage {
                    0 => {}
                    1 => driver.set_status(status::ACKNOWLEDGE),
                    2 => assert!(driver.negotiate(FEATURES)),
                    3 => assert_usable(&driver),
                    _ => driver.set_status(status::FAILED),
                }
                driver.set_status(value);
                driver.kick(0);
                assert_eq!(driver.status() & 0x30, 0, "bits that do not exist stay clear");
                assert_eq!(driver.owner.runs(), driver.status() & status::DRIVER_OK != 0);
            }
        }
        assert_usable(&driver);
    }
}

#[test]
fn selectors_out_of_range_find_nothing_and_change_nothing() {
    for via in Via::ALL {
        let driver = driver(via);
        let (features, select) = match via {
            Via::Mmio => (mmio::DEVICE_FEATURES, mmio::DEVICE_FEATURES_SEL),
            Via::Pci => (common::DEVICE_FEATURE, common::DEVICE_FEATURE_SELECT),
        };
        for selected in [2, 3, 31, 32, u32::MAX] {
            let mut data = [0xee; 4];
            driver.window().write(select, &selected.to_le_bytes());
            driver.window().read(features, &mut data);
            assert_eq!(data, [0; 4]);
        }
        assert!(driver.negotiate(FEATURES));
        driver.set_queue(2, &GOOD);
        driver.set_queue(u16::MAX - 1, &GOOD);
        driver.set_queue(0, &GOOD);
        assert!(driver.driver_ok());
    }
}

#[test]
fn a_table_of_garbage_routes_only_vectors_that_exist_and_the_device_still_works() {
    let driver = driver(Via::Pci);
    let window = driver.window();
    for round in 0u64..4 {
        for offset in (PCI_TABLE..PCI_TABLE + 0x1000).step_by(4) {
            let garbage =
                offset.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(u32::try_from(round).unwrap());
            window.write(offset, &garbage.to_le_bytes()[..4]);
            let control = if garbage & 8 == 0 { 0x8000u16 } else { 0xffff };
            driver.function().unwrap().config_write(PCI_MSIX_CONTROL, &control.to_le_bytes());
        }
    }
    assert_usable(&driver);
}

/// One access of a driver that knows no rules.
#[derive(Debug, Clone)]
enum Access {
    Write { offset: u64, width: u8, value: u64 },
    Read { offset: u64, width: u8 },
    Function { offset: u16, width: u8, value: Option<u32> },
    Initialise,
    Kick(u16),
}

fn access() -> impl Strategy<Value = Access> {
    // Half of the accesses go to the registers that matter.
    let offset = prop_oneof![0u64..0x110, 0u64..u64::from(BAR_SIZE) + 4];
    let value = prop_oneof![0u64..16, Just(0x1_0000), any::<u64>()];
    prop_oneof![
        4 => (offset.clone(), 0u8..4, value).prop_map(|(offset, width, value)| Access::Write { offset, width, value }),
        2 => (offset, 0u8..4).prop_map(|(offset, width)| Access::Read { offset, width }),
        2 => (0u16..4092, 0u8..3, any::<Option<u32>>())
            .prop_map(|(offset, width, value)| Access::Function { offset, width, value }),
        1 => Just(Access::Initialise),
        1 => any::<u16>().prop_map(Access::Kick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_accesses_leaves_a_device_that_an_honest_driver_can_use(
        accesses in proptest::collection::vec(access(), 0..200),
    ) {
        for via in Via::ALL {
            let driver = driver(via);
            for access in &accesses {
                match *access {
                    Access::Write { offset, width, value } =>
                        driver.window().write(offset, &value.to_le_bytes()[..1 << width]),
                    Access::Read { offset, width } => driver.window().read(offset, &mut [0; 8][..1 << width]),
                    Access::Function { offset, width, value } => if let Some(function) = driver.function() {
                        match value {
                            Some(value) => function.config_write(offset, &value.to_le_bytes()[..1 << width]),
                            None => function.config_read(offset, &mut [0; 4][..1 << width]),
                        }
                    },
                    Access::Initialise => { driver.initialise(FEATURES, &[GOOD]); }
                    Access::Kick(queue) => driver.kick(queue),
                }
                // A device runs only for a driver that set DRIVER_OK.
                prop_assert!(!driver.owner.runs() || driver.status() & status::DRIVER_OK != 0);
            }
            prop_assert!(driver.initialise(FEATURES, &[GOOD]));
            prop_assert!(driver.owner.runs());
        }
    }
}
