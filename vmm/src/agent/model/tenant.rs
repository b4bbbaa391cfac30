//! Tenants: who they are, what they may use, which networks they have.

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{EgressClass, Name};

/// What someone may do with a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look.
    Read,
    /// Change its VMs and volumes.
    Write,
}

/// Who may use a tenant: a user or a group of the host, by number. One of `uid` and `gid` is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// A user.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    /// A group.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gid: Option<u32>,
    /// What they may do.
    pub role: Role,
}

/// Limits of a tenant; what is not given is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// VMs, whether they run or not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vms: Option<u64>,
    /// vCPUs of its VMs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vcpus: Option<u64>,
    /// Memory of its VMs, in MiB.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub memory_mib: Option<u64>,
    /// Size of its volumes, in MiB.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub disk_mib: Option<u64>,
    /// Network interfaces of its VMs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interfaces: Option<u64>,
}

/// What counts against a [`Quota`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuotaUse {
    /// VMs.
    pub vms: u64,
    /// vCPUs.
    pub vcpus: u64,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Volumes, in MiB.
    pub disk_mib: u64,
    /// Interfaces.
    pub interfaces: u64,
}

/// Body of `PUT /v1/tenants/{tenant}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSpec {
    /// What it may use.
    pub quota: Quota,
    /// Who may use it, besides administrators.
    pub access: Vec<Access>,
    /// The widest class that its interfaces may have.
    pub egress: EgressClass,
}

/// Body of `PUT /v1/tenants/{tenant}/subnets/{subnet}`. At least one of the prefixes is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubnetSpec {
    /// IPv4 prefix, /30 or shorter.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>, example = "10.1.0.0/24")]
    pub ipv4: Option<Ipv4Net>,
    /// IPv6 prefix, /120 or shorter.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>, example = "fd00:1::/64")]
    pub ipv6: Option<Ipv6Net>,
}

/// A subnet of a tenant's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Subnet {
    /// Its name.
    pub name: Name,
    /// Whose it is.
    pub tenant: Name,
    /// Its prefixes.
    #[serde(flatten)]
    pub spec: SubnetSpec,
    /// Interfaces in it.
    pub interfaces: u64,
}

impl From<Tenant> for TenantSpec {
    /// What was put to make it what it is.
    fn from(tenant: Tenant) -> Self {
        Self { quota: tenant.quota, access: tenant.access, egress: tenant.egress }
    }
}

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tenant {
    /// Its name.
    pub name: Name,
    /// What it may use.
    pub quota: Quota,
    /// What it uses.
    pub used: QuotaUse,
    /// Who may use it.
    pub access: Vec<Access>,
    /// The widest class that its interfaces may have.
    pub egress: EgressClass,
    /// When it was made.
    pub created_at: String,
}
