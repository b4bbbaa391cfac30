//! vCPUs and memory: `/machine-config`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most vCPUs a microVM can have.
pub const VCPU_COUNT_MAX: u8 = 32;
/// Memory of a microVM whose configuration names none, in MiB.
pub const MEM_SIZE_DEFAULT_MIB: usize = 128;

/// What backs the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum HugePages {
    /// Ordinary pages, as the host's policy has them.
    #[default]
    None,
    /// Ordinary pages that the kernel is asked to gather into huge ones.
    Transparent,
    /// 2 MiB pages reserved on the host (hugetlbfs).
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

impl HugePages {
    /// The memory size has to be a multiple of this.
    fn granule_mib(self) -> usize {
        match self {
            Self::None => 1,
            Self::Transparent | Self::Hugetlbfs2M => 2,
        }
    }
}

/// Firecracker's deprecated, named CPU templates. Only `None` can be applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[expect(missing_docs, reason = "the names are all there is to say of them")]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    /// The host's CPU as KVM shows it.
    #[default]
    None,
}

/// Body of `PUT /machine-config`, and what `GET` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs: 1, or up to 32; even if `smt` is set.
    pub vcpu_count: u8,
    /// Memory in MiB.
    pub mem_size_mib: usize,
    /// Whether two vCPUs appear as the threads of one core.
    #[serde(default)]
    pub smt: bool,
    /// Deprecated: only `None` is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether pages the guest writes are tracked, for differential snapshots.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// What backs the guest's memory.
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: MEM_SIZE_DEFAULT_MIB,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// Body of `PATCH /machine-config`: at least one field; what is missing stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineConfigPatch {
    /// Number of vCPUs: 1, or up to 32; even if `smt` is set.
    pub vcpu_count: Option<u8>,
    /// Memory in MiB.
    pub mem_size_mib: Option<usize>,
    /// Whether two vCPUs appear as the threads of one core.
    pub smt: Option<bool>,
    /// Deprecated: only `None` is accepted.
    pub cpu_template: Option<CpuTemplate>,
    /// Whether pages the guest writes are tracked, for differential snapshots.
    pub track_dirty_pages: Option<bool>,
    /// What backs the guest's memory.
    pub huge_pages: Option<HugePages>,
}

impl From<MachineConfig> for MachineConfigPatch {
    /// A `PUT` is a `PATCH` that names every field.
    fn from(config: MachineConfig) -> Self {
        Self {
            vcpu_count: Some(config.vcpu_count),
            mem_size_mib: Some(config.mem_size_mib),
            smt: Some(config.smt),
            cpu_template: config.cpu_template,
            track_dirty_pages: Some(config.track_dirty_pages),
            huge_pages: Some(config.huge_pages),
        }
    }
}

/// Why a machine configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineConfigError {
    /// The number of vCPUs can't be had. (32 itself is accepted.)
    #[error(
        "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled."
    )]
    VcpuCount,
    /// The amount of memory can't be had.
    #[error("The memory size (MiB) is either 0, or not a multiple of the configured page size.")]
    MemSize,
    /// A named CPU template.
    #[error(
        "The CPU template {0:?} is not supported by this build: leave cpu_template out or set it to None, \
         and the guest sees the host's CPU as KVM offers it."
    )]
    CpuTemplate(CpuTemplate),
}

impl MachineConfig {
    /// This configuration with `patch` applied, if the result is one that can be built.
    ///
    /// # Errors
    /// [`MachineConfigError`]; `self` is what it was.
    pub fn patched(&self, patch: &MachineConfigPatch) -> Result<Self, MachineConfigError> {
        let config = Self {
            vcpu_count: patch.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: patch.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: patch.smt.unwrap_or(self.smt),
            cpu_template: None,
            track_dirty_pages: patch.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: patch.huge_pages.unwrap_or(self.huge_pages),
        };
        let uneven = config.smt && config.vcpu_count > 1 && !config.vcpu_count.is_multiple_of(2);
        if !(1..=VCPU_COUNT_MAX).contains(&config.vcpu_count) || uneven {
            return Err(MachineConfigError::VcpuCount);
        }
        if config.mem_size_mib == 0 || !config.mem_size_mib.is_multiple_of(config.huge_pages.granule_mib()) {
            return Err(MachineConfigError::MemSize);
        }
        match patch.cpu_template {
            None | Some(CpuTemplate::None) => Ok(config),
            Some(other) => Err(MachineConfigError::CpuTemplate(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(json: &str) -> Result<MachineConfig, MachineConfigError> {
        MachineConfig::default().patched(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn vcpu_counts_outside_1_to_32_and_odd_ones_with_smt_are_refused() {
        for json in [r#"{"vcpu_count":0}"#, r#"{"vcpu_count":33}"#, r#"{"vcpu_count":3,"smt":true}"#] {
            assert_eq!(patched(json), Err(MachineConfigError::VcpuCount), "{json}");
        }
        for json in [r#"{"vcpu_count":1,"smt":true}"#, r#"{"vcpu_count":32}"#, r#"{"vcpu_count":3}"#] {
            assert!(patched(json).is_ok(), "{json}");
        }
    }

    #[test]
    fn memory_of_zero_or_not_in_whole_pages_is_refused() {
        for json in [
            r#"{"mem_size_mib":0}"#,
            r#"{"mem_size_mib":129,"huge_pages":"2M"}"#,
            r#"{"mem_size_mib":129,"huge_pages":"Transparent"}"#,
        ] {
            assert_eq!(patched(json), Err(MachineConfigError::MemSize), "{json}");
        }
        assert!(patched(r#"{"mem_size_mib":129}"#).is_ok());
        assert!(
            patched(r#"{"mem_size_mib":18446744073709551615}"#).is_ok(),
            "refused at the start, as Firecracker does"
        );
    }

    #[test]
    fn a_named_template_is_refused_and_none_is_accepted() {
        let refusal = patched(r#"{"cpu_template":"T2"}"#).unwrap_err().to_string();
        assert!(refusal.starts_with("The CPU template T2 is not supported by this build"), "{refusal}");
        assert!(patched(r#"{"cpu_template":"None"}"#).is_ok());
    }

    #[test]
    fn a_missing_field_stays_as_it_is() {
        let config = MachineConfig { vcpu_count: 4, smt: true, ..MachineConfig::default() };
        let patch = MachineConfigPatch { mem_size_mib: Some(7), ..MachineConfigPatch::default() };
        assert_eq!(config.patched(&patch), Ok(MachineConfig { mem_size_mib: 7, ..config }));
    }

    #[test]
    fn what_get_shows_has_firecrackers_keys() {
        assert_eq!(
            serde_json::to_string(&MachineConfig::default()).unwrap(),
            r#"{"vcpu_count":1,"mem_size_mib":128,"smt":false,"track_dirty_pages":false,"huge_pages":"None"}"#
        );
    }
}
