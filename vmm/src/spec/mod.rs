//! What was asked for: the JSON bodies a client sends, and the checked values they become.
//!
//! A type here is either *wire* (serde, Firecracker's field names, unknown fields refused) or *checked* (what the
//! rest of the crate works with). Where a body can't be wrong beyond its JSON types, one type serves as both.
//! Everything in this room is data: no file is opened, no clock is read, nothing here knows HTTP or KVM.
//!
//! The types are also the API's documentation: their rustdoc becomes the OpenAPI document (`api::openapi`).

mod action;
mod boot;
mod config_file;
mod drive;
mod entropy;
mod id;
mod limiter;
mod logger;
mod machine;
mod metrics;
mod net;
mod serial;
mod view;
mod vsock;

pub use action::{Action, ActionBody, VmState, VmStateBody};
pub use boot::{BootSource, DEFAULT_BOOT_ARGS};
pub use config_file::{ConfigFile, ConfigFileError};
pub use drive::{
    CacheType, Drive, DriveBody, DrivePatch, DriveSpecError, IoEngine, POLL_US_MAX, QUEUES_MAX,
    SERIAL_LEN_MAX,
};
pub use entropy::Entropy;
pub use id::{IdError, InstanceId, InstanceIdError, check_resource_id};
pub use limiter::{RateLimiter, RateLimiterPatch, TokenBucket};
pub use logger::{LogLevel, Logger};
pub use machine::{
    CpuTemplate, HugePages, MEM_SIZE_DEFAULT_MIB, MachineConfig, MachineConfigError, MachineConfigPatch,
    VCPU_COUNT_MAX,
};
pub use metrics::Metrics;
pub use net::{
    MTU_MAX, MTU_MIN, Mac, MacError, NetSpecError, NetworkInterface, NetworkInterfacePatch, QUEUE_PAIRS_MAX,
    TapSource,
};
pub use serial::Serial;
pub use view::{APP_NAME, DriveView, FIRECRACKER_API_VERSION, Fault, Version, VmConfig, VmInfo, VmStatus};
pub use vsock::{GUEST_CID_MAX, GUEST_CID_MIN, Vsock, VsockSpecError};
