//! Numbers from the standard that belong to no single device: status, features, MMIO registers, PCI capabilities.
//!
//! Sections are those of the Virtual I/O Device (VIRTIO) specification, version 1.2.

/// Device status bits, §2.1.
pub mod status {
    /// The driver has noticed the device, §2.1.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive the device, §2.1.
    pub const DRIVER: u8 = 2;
    /// The driver is set up: the device may serve, §2.1.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete, §2.1.
    pub const FEATURES_OK: u8 = 8;
    /// The device can't go on until it is reset, §2.1.2.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up on the device, §2.1.
    pub const FAILED: u8 = 128;
}

/// Device-independent feature bits, §6.
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC, §6 and §2.7.5.3.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX, §6, §2.7.7 and §2.7.10.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1, §6.1: not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Bits of InterruptStatus (§4.2.2) and of the ISR status byte (§4.1.4.5).
pub mod interrupt {
    /// A queue has new used buffers.
    pub const QUEUE: u32 = 1;
    /// The configuration changed, or DEVICE_NEEDS_RESET was set.
    pub const CONFIG: u32 = 2;
}

/// Layout of a split queue, §2.7.
pub mod ring {
    /// Alignment of the descriptor area, §2.7.
    pub const DESCRIPTORS_ALIGN: u64 = 16;
    /// Alignment of the driver area (available ring), §2.7.
    pub const DRIVER_ALIGN: u64 = 2;
    /// Alignment of the device area (used ring), §2.7.
    pub const DEVICE_ALIGN: u64 = 4;

    /// Bytes of the descriptor area of a queue of `size`, §2.7.
    #[must_use]
    pub const fn descriptors_len(size: u16) -> u64 {
        16 * size as u64
    }

    /// Bytes of the driver area, `used_event` included, §2.7.
    #[must_use]
    pub const fn driver_len(size: u16) -> u64 {
        6 + 2 * size as u64
    }

    /// Bytes of the device area, `avail_event` included, §2.7.
    #[must_use]
    pub const fn device_len(size: u16) -> u64 {
        6 + 8 * size as u64
    }
}

/// Registers of the MMIO transport, §4.2.2.
pub mod mmio {
    /// Value of MagicValue: "virt", little-endian.
    pub const MAGIC: u32 = 0x7472_6976;
    /// Value of Version: not legacy.
    pub const VERSION: u32 = 2;

    /// MagicValue (R).
    pub const MAGIC_VALUE: u64 = 0x000;
    /// Version (R).
    pub const VERSION_REG: u64 = 0x004;
    /// DeviceID (R).
    pub const DEVICE_ID: u64 = 0x008;
    /// VendorID (R).
    pub const VENDOR_ID: u64 = 0x00c;
    /// DeviceFeatures (R).
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// DeviceFeaturesSel (W).
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// DriverFeatures (W).
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// DriverFeaturesSel (W).
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// QueueSel (W).
    pub const QUEUE_SEL: u64 = 0x030;
    /// QueueNumMax (R).
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    /// QueueNum (W).
    pub const QUEUE_NUM: u64 = 0x038;
    /// QueueReady (RW).
    pub const QUEUE_READY: u64 = 0x044;
    /// QueueNotify (W).
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// InterruptStatus (R).
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// InterruptACK (W).
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// Status (RW).
    pub const STATUS: u64 = 0x070;
    /// QueueDescLow (W).
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// QueueDescHigh (W).
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// QueueDriverLow (W).
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// QueueDriverHigh (W).
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// QueueDeviceLow (W).
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// QueueDeviceHigh (W).
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// SHMLenLow (R).
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// SHMLenHigh (R).
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    /// SHMBaseLow (R).
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    /// SHMBaseHigh (R).
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// ConfigGeneration (R).
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// First byte of the device's configuration space (R).
    pub const CONFIG: u64 = 0x100;
}

/// The PCI transport, §4.1.
pub mod pci {
    /// PCI vendor ID, §4.1.2.
    pub const VENDOR: u16 = 0x1af4;
    /// PCI device ID of a device that was never legacy: this plus the virtio device ID, §4.1.2.
    pub const DEVICE_BASE: u16 = 0x1040;
    /// Smallest PCI revision of such a device, §4.1.2.1.
    pub const REVISION: u8 = 1;

    /// VIRTIO_PCI_CAP_COMMON_CFG, §4.1.4.
    pub const CAP_COMMON: u8 = 1;
    /// VIRTIO_PCI_CAP_NOTIFY_CFG, §4.1.4.
    pub const CAP_NOTIFY: u8 = 2;
    /// VIRTIO_PCI_CAP_ISR_CFG, §4.1.4.
    pub const CAP_ISR: u8 = 3;
    /// VIRTIO_PCI_CAP_DEVICE_CFG, §4.1.4.
    pub const CAP_DEVICE: u8 = 4;
    /// VIRTIO_PCI_CAP_PCI_CFG, §4.1.4 and §4.1.4.9.
    pub const CAP_PCI_CFG: u8 = 5;

    /// VIRTIO_MSI_NO_VECTOR, §4.1.5.1.2.
    pub const NO_VECTOR: u16 = 0xffff;

    /// Offsets into the common configuration structure, §4.1.4.3.
    pub mod common {
        /// device_feature_select, le32 (RW).
        pub const DEVICE_FEATURE_SELECT: u64 = 0;
        /// device_feature, le32 (R).
        pub const DEVICE_FEATURE: u64 = 4;
        /// driver_feature_select, le32 (RW).
        pub const DRIVER_FEATURE_SELECT: u64 = 8;
        /// driver_feature, le32 (RW).
        pub const DRIVER_FEATURE: u64 = 12;
        /// config_msix_vector, le16 (RW).
        pub const CONFIG_MSIX_VECTOR: u64 = 16;
        /// num_queues, le16 (R).
        pub const NUM_QUEUES: u64 = 18;
        /// device_status, u8 (RW).
        pub const DEVICE_STATUS: u64 = 20;
        /// config_generation, u8 (R).
        pub const CONFIG_GENERATION: u64 = 21;
        /// queue_select, le16 (RW).
        pub const QUEUE_SELECT: u64 = 22;
        /// queue_size, le16 (RW).
        pub const QUEUE_SIZE: u64 = 24;
        /// queue_msix_vector, le16 (RW).
        pub const QUEUE_MSIX_VECTOR: u64 = 26;
        /// queue_enable, le16 (RW).
        pub const QUEUE_ENABLE: u64 = 28;
        /// queue_notify_off, le16 (R).
        pub const QUEUE_NOTIFY_OFF: u64 = 30;
        /// queue_desc, le64 as two le32 (RW).
        pub const QUEUE_DESC: u64 = 32;
        /// queue_driver, le64 as two le32 (RW).
        pub const QUEUE_DRIVER: u64 = 40;
        /// queue_device, le64 as two le32 (RW).
        pub const QUEUE_DEVICE: u64 = 48;
    }
}
