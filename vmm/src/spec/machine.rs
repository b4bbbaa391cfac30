//! vCPUs and memory: `/machine-config`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Most vCPUs a microVM can have.
pub const VCPU_COUNT_MAX: u8 = 32;
/// Memory of a microVM whose configuration names none, in MiB.
pub const MEM_SIZE_DEFAULT_MIB: usize = 128;
/// Highest number of a CPU of the host that can be named: the C library's sets of CPUs end there.
pub const CPU_MAX: u16 = 1023;

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
    /// The host's CPU on which each vCPU stays, one for each in their order; any if missing (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_affinity: Option<Vec<u16>>,
    /// The host's CPUs on which the devices' threads stay; any if missing (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_affinity: Option<Vec<u16>>,
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
            vcpu_affinity: None,
            io_affinity: None,
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
    /// The host's CPU on which each vCPU stays, one for each; none for any.
    pub vcpu_affinity: Option<Vec<u16>>,
    /// The host's CPUs on which the devices' threads stay; none for any.
    pub io_affinity: Option<Vec<u16>>,
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
            // A PUT without them takes them away.
            vcpu_affinity: Some(config.vcpu_affinity.unwrap_or_default()),
            io_affinity: Some(config.io_affinity.unwrap_or_default()),
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
    /// Not as many CPUs as vCPUs.
    #[error(
        "The vcpu_affinity names {cpus} CPUs for {vcpus} vCPUs: it must name one for each, or none at all."
    )]
    VcpuAffinity {
        /// CPUs that are named.
        cpus: usize,
        /// vCPUs that there are.
        vcpus: u8,
    },
    /// A number that no CPU has.
    #[error("{field}: there is no CPU {cpu}; accepted are 0 to {CPU_MAX}.")]
    Cpu {
        /// Where it is named.
        field: &'static str,
        /// The number.
        cpu: u16,
    },
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
            vcpu_affinity: affinity(&patch.vcpu_affinity, &self.vcpu_affinity),
            io_affinity: affinity(&patch.io_affinity, &self.io_affinity),
        };
        let uneven = config.smt && config.vcpu_count > 1 && !config.vcpu_count.is_multiple_of(2);
        if !(1..=VCPU_COUNT_MAX).contains(&config.vcpu_count) || uneven {
            return Err(MachineConfigError::VcpuCount);
        }
        if config.mem_size_mib == 0 || !config.mem_size_mib.is_multiple_of(config.huge_pages.granule_mib()) {
            return Err(MachineConfigError::MemSize);
        }
        for (field, cpus) in [("vcpu_affinity", &config.vcpu_affinity), ("io_affinity", &config.io_affinity)]
        {
            if let Some(cpu) = cpus.iter().flatten().copied().find(|cpu| *cpu > CPU_MAX) {
                return Err(MachineConfigError::Cpu { field, cpu });
            }
        }
        if let Some(cpus) = config.vcpu_affinity.as_ref().map(Vec::len)
            && cpus != usize::from(config.vcpu_count)
        {
            return Err(MachineConfigError::VcpuAffinity { cpus, vcpus: config.vcpu_count });
        }
        match patch.cpu_template {
            None | Some(CpuTemplate::None) => Ok(config),
            Some(other) => Err(MachineConfigError::CpuTemplate(other)),
        }
    }
}

/// What becomes of an affinity: an empty one takes it away.
fn affinity(patch: &Option<Vec<u16>>, current: &Option<Vec<u16>>) -> Option<Vec<u16>> {
    patch.as_ref().or(current.as_ref()).filter(|cpus| !cpus.is_empty()).cloned()
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
    fn each_vcpu_has_its_cpu_or_none_has() {
        let config = patched(r#"{"vcpu_count":2,"vcpu_affinity":[1,0],"io_affinity":[3]}"#).unwrap();
        assert_eq!(
            (config.vcpu_affinity.clone(), config.io_affinity.clone()),
            (Some(vec![1, 0]), Some(vec![3]))
        );
        let patch = |json: &str| config.patched(&serde_json::from_str(json).unwrap());
        assert_eq!(patch(r#"{"mem_size_mib":7}"#).unwrap().vcpu_affinity, Some(vec![1, 0]));
        assert_eq!(
            patch(r#"{"vcpu_count":4}"#).unwrap_err().to_string(),
            "The vcpu_affinity names 2 CPUs for 4 vCPUs: it must name one for each, or none at all."
        );
        assert_eq!(patch(r#"{"vcpu_count":4,"vcpu_affinity":[]}"#).unwrap().vcpu_affinity, None);
        assert_eq!(
            patch(r#"{"io_affinity":[0,1024]}"#).unwrap_err().to_string(),
            "io_affinity: there is no CPU 1024; accepted are 0 to 1023."
        );
        let put: MachineConfig = serde_json::from_str(r#"{"vcpu_count":2,"mem_size_mib":9}"#).unwrap();
        let put = config.patched(&put.into()).unwrap();
        assert_eq!((put.vcpu_affinity, put.io_affinity), (None, None), "a PUT replaces all");
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
