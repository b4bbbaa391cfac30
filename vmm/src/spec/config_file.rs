//! The same requests in one file: `--config-file`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{
    BootSource, Drive, DriveBody, DriveSpecError, Entropy, IdError, Logger, MachineConfig, Metrics,
    NetSpecError, NetworkInterface, RateLimiter, Vsock, VsockSpecError, check_resource_id,
};

/// A whole microVM in one JSON object; its keys are the paths of the requests. Unknown keys are ignored, as
/// Firecracker ignores them, but a section that this build can't honour is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// What the guest boots.
    pub boot_source: BootSource,
    /// Its drives, in order.
    pub drives: Vec<Drive>,
    /// vCPUs and memory.
    pub machine_config: Option<MachineConfig>,
    /// Its network interfaces, in order.
    pub network_interfaces: Vec<NetworkInterface>,
    /// The random number device.
    pub entropy: Option<Entropy>,
    /// The socket device.
    pub vsock: Option<Vsock>,
    /// How to log.
    pub logger: Option<Logger>,
    /// Where to write metrics.
    pub metrics: Option<Metrics>,
    /// Rate limits that devices have together, by name (an addition to Firecracker's sections).
    pub rate_limiter_groups: BTreeMap<String, RateLimiter>,
}

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// Not JSON, or not of the form described.
    #[error("Invalid JSON in the configuration file: {0}")]
    Json(#[from] serde_json::Error),
    /// A section that can't be honoured.
    #[error("The configuration file's section `{0}` is not supported by this build.")]
    Unsupported(&'static str),
    /// The id of a resource.
    #[error("The id {0:?} in the configuration file is invalid: {1}")]
    Id(String, IdError),
    /// The description of a drive.
    #[error("Drive {0:?} in the configuration file: {1}")]
    Drive(String, DriveSpecError),
    /// The description of an interface.
    #[error("Network interface {0:?} in the configuration file: {1}")]
    Net(String, NetSpecError),
    /// The description of the socket device.
    #[error("The socket device in the configuration file: {0}")]
    Vsock(#[from] VsockSpecError),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Wire {
    boot_source: BootSource,
    drives: Vec<DriveBody>,
    machine_config: Option<MachineConfig>,
    #[serde(default)]
    network_interfaces: Vec<NetworkInterface>,
    entropy: Option<Entropy>,
    logger: Option<Logger>,
    metrics: Option<Metrics>,
    cpu_config: Option<Value>,
    balloon: Option<Value>,
    vsock: Option<Vsock>,
    mmds_config: Option<Value>,
    #[serde(default)]
    pmem: Vec<Value>,
    memory_hotplug: Option<Value>,
    #[serde(default)]
    rate_limiter_groups: BTreeMap<String, RateLimiter>,
}

impl ConfigFile {
    /// Reads a configuration from JSON.
    ///
    /// # Errors
    /// [`ConfigFileError`] names the section or field.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigFileError> {
        let wire: Wire = serde_json::from_slice(json)?;
        let refused = [
            ("cpu-config", wire.cpu_config.is_some()),
            ("balloon", wire.balloon.is_some()),
            ("mmds-config", wire.mmds_config.is_some()),
            ("pmem", !wire.pmem.is_empty()),
            ("memory-hotplug", wire.memory_hotplug.is_some()),
        ];
        if let Some((section, _)) = refused.iter().find(|(_, present)| *present) {
            return Err(ConfigFileError::Unsupported(section));
        }
        let check_id =
            |id: &str| check_resource_id(id).map_err(|error| ConfigFileError::Id(id.to_owned(), error));
        wire.rate_limiter_groups.keys().try_for_each(|id| check_id(id))?;
        let mut drives = Vec::with_capacity(wire.drives.len());
        for body in wire.drives {
            check_id(&body.drive_id)?;
            let id = body.drive_id.clone();
            drives.push(Drive::try_from(body).map_err(|error| ConfigFileError::Drive(id, error))?);
        }
        let mut network_interfaces = Vec::with_capacity(wire.network_interfaces.len());
        for interface in wire.network_interfaces {
            check_id(&interface.iface_id)?;
            let id = interface.iface_id.clone();
            network_interfaces.push(interface.checked().map_err(|error| ConfigFileError::Net(id, error))?);
        }
        Ok(Self {
            boot_source: wire.boot_source,
            drives,
            machine_config: wire.machine_config,
            network_interfaces,
            entropy: wire.entropy,
            vsock: wire.vsock.map(Vsock::checked).transpose()?,
            logger: wire.logger,
            metrics: wire.metrics,
            rate_limiter_groups: wire.rate_limiter_groups,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = r#"{"boot-source":{"kernel_image_path":"k"},"drives":[]"#;

    #[test]
    fn the_smallest_file_has_a_boot_source_and_drives() {
        let file = ConfigFile::parse(format!("{SMALLEST}}}").as_bytes()).unwrap();
        assert_eq!(file.boot_source.kernel_image_path, "k");
        assert!(
            ConfigFile::parse(br#"{"boot-source":{"kernel_image_path":"k"}}"#).is_err(),
            "drives is required"
        );
        assert!(ConfigFile::parse(br#"{"drives":[]}"#).is_err(), "boot-source is required");
    }

    #[test]
    fn unknown_sections_and_null_ones_are_ignored_and_unsupported_ones_refused() {
        let parse = |rest: &str| ConfigFile::parse(format!("{SMALLEST},{rest}}}").as_bytes());
        assert!(parse(r#""whatever":1,"balloon":null,"vsock":null,"pmem":[]"#).is_ok());
        assert_eq!(
            parse(r#""balloon":{"amount_mib":1}"#).unwrap_err().to_string(),
            "The configuration file's section `balloon` is not supported by this build."
        );
        assert!(
            parse(r#""machine-config":{"vcpu_count":1,"mem_size_mib":1,"x":1}"#).is_err(),
            "inner ones are not"
        );
    }

    #[test]
    fn a_socket_device_is_taken_up_or_refused_as_in_a_request() {
        let parse = |rest: &str| ConfigFile::parse(format!("{SMALLEST},{rest}}}").as_bytes());
        let vsock = parse(r#""vsock":{"guest_cid":3,"uds_path":"v"}"#).unwrap().vsock.unwrap();
        assert_eq!((vsock.guest_cid, vsock.uds_path.as_str()), (3, "v"));
        assert_eq!(
            parse(r#""vsock":{"guest_cid":2,"uds_path":"v"}"#).unwrap_err().to_string(),
            "The socket device in the configuration file: The guest_cid 2 is reserved: it must be 3 to 4294967294."
        );
    }

    #[test]
    fn groups_of_rate_limits_are_named_by_ids() {
        let parse = |rest: &str| ConfigFile::parse(format!("{SMALLEST},{rest}}}").as_bytes());
        let groups = r#""rate-limiter-groups":{"g":{"ops":{"size":1,"refill_time":1}}}"#;
        assert_eq!(parse(groups).unwrap().rate_limiter_groups["g"].ops.unwrap().size, 1);
        assert!(matches!(parse(r#""rate-limiter-groups":{"a-b":{}}"#), Err(ConfigFileError::Id(..))));
    }

    #[test]
    fn ids_and_fields_are_checked_as_in_requests() {
        let parse = |drive: &str| {
            ConfigFile::parse(
                format!(r#"{{"boot-source":{{"kernel_image_path":"k"}},"drives":[{drive}]}}"#).as_bytes(),
            )
        };
        assert!(matches!(
            parse(r#"{"drive_id":"a-b","path_on_host":"p","is_root_device":true}"#),
            Err(ConfigFileError::Id(..))
        ));
        assert!(matches!(
            parse(r#"{"drive_id":"a","is_root_device":true}"#),
            Err(ConfigFileError::Drive(..))
        ));
    }
}
