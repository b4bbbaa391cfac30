//! What a client is shown: the bodies of `GET` answers and of refusals.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    BootSource, CacheType, Drive, Entropy, IoEngine, MachineConfig, NetworkInterface, RateLimiter, Vsock,
};

/// Release of Firecracker's API that this one follows; what clients are told as the version.
pub const FIRECRACKER_API_VERSION: &str = "1.17.0";
/// What clients are told as the application's name, because they know no other.
pub const APP_NAME: &str = "Firecracker";

/// Where a microVM is in its life, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub enum VmStatus {
    /// Not started, or ended.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Running.
    Running,
    /// Paused.
    Paused,
}

/// Answer to `GET /`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct VmInfo {
    /// The microVM's id.
    pub id: String,
    /// Where it is in its life.
    pub state: VmStatus,
    /// Release of the API.
    pub vmm_version: &'static str,
    /// Name of the application.
    pub app_name: &'static str,
}

impl VmInfo {
    /// What is shown of the microVM `id` in `state`.
    pub fn new(id: impl Into<String>, state: VmStatus) -> Self {
        Self { id: id.into(), state, vmm_version: FIRECRACKER_API_VERSION, app_name: APP_NAME }
    }
}

/// Answer to `GET /version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Version {
    /// Release of the API.
    pub firecracker_version: &'static str,
}

impl Default for Version {
    fn default() -> Self {
        Self { firecracker_version: FIRECRACKER_API_VERSION }
    }
}

/// Body of every refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Fault<'a> {
    /// What was wrong.
    pub fault_message: &'a str,
}

/// A drive in [`VmConfig`]: the fields of a `PUT`, those that are missing as null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "the fields of DriveBody")]
pub struct DriveView {
    pub drive_id: String,
    pub partuuid: Option<String>,
    pub is_root_device: bool,
    pub cache_type: CacheType,
    pub is_read_only: bool,
    pub path_on_host: String,
    pub rate_limiter: Option<RateLimiter>,
    pub io_engine: IoEngine,
    pub socket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_queues: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter_group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_us: Option<u16>,
}

impl From<&Drive> for DriveView {
    fn from(drive: &Drive) -> Self {
        Self {
            drive_id: drive.id.clone(),
            partuuid: drive.partuuid.clone(),
            is_root_device: drive.root,
            cache_type: drive.cache,
            is_read_only: drive.read_only,
            path_on_host: drive.path.clone(),
            rate_limiter: drive.limiter,
            io_engine: drive.engine,
            socket: None,
            serial: drive.serial.clone(),
            num_queues: drive.queues.map(NonZeroU16::get),
            direct: drive.direct.then_some(true),
            discard: (!drive.discard).then_some(false),
            rate_limiter_group: drive.group.clone(),
            poll_us: Some(drive.poll_us).filter(|us| *us > 0),
        }
    }
}

/// Answer to `GET /vm/config`. Sections that are not configured, or not supported, are null or empty, never missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names of the requests that set them")]
pub struct VmConfig {
    #[schema(value_type = Option<Object>)]
    pub balloon: Option<()>,
    pub drives: Vec<DriveView>,
    pub boot_source: BootSource,
    #[schema(value_type = Option<Object>)]
    pub cpu_config: Option<()>,
    #[schema(value_type = Option<Object>)]
    pub logger: Option<()>,
    pub machine_config: MachineConfig,
    #[schema(value_type = Option<Object>)]
    pub metrics: Option<()>,
    #[schema(value_type = Option<Object>)]
    pub mmds_config: Option<()>,
    pub network_interfaces: Vec<NetworkInterface>,
    pub vsock: Option<Vsock>,
    pub entropy: Option<Entropy>,
    #[schema(value_type = Vec<Object>)]
    pub pmem: Vec<()>,
    #[schema(value_type = Option<Object>)]
    pub memory_hotplug: Option<()>,
    /// Missing if there are none: Firecracker knows none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rate_limiter_groups: BTreeMap<String, RateLimiter>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_configuration_shows_every_section() {
        assert_eq!(
            serde_json::to_string(&VmConfig::default()).unwrap(),
            concat!(
                r#"{"balloon":null,"drives":[],"#,
                r#""boot-source":{"kernel_image_path":"","initrd_path":null,"boot_args":null},"#,
                r#""cpu-config":null,"logger":null,"#,
                r#""machine-config":{"vcpu_count":1,"mem_size_mib":128,"smt":false,"track_dirty_pages":false,"huge_pages":"None"},"#,
                r#""metrics":null,"mmds-config":null,"network-interfaces":[],"vsock":null,"entropy":null,"#,
                r#""pmem":[],"memory-hotplug":null}"#
            )
        );
    }

    #[test]
    fn the_three_states_are_spelled_as_clients_expect() {
        let spelled = |state| serde_json::to_string(&VmInfo::new("vm-1", state)).unwrap();
        assert_eq!(
            spelled(VmStatus::NotStarted),
            r#"{"id":"vm-1","state":"Not started","vmm_version":"1.17.0","app_name":"Firecracker"}"#
        );
        assert!(spelled(VmStatus::Running).contains(r#""state":"Running""#));
        assert!(spelled(VmStatus::Paused).contains(r#""state":"Paused""#));
    }
}
