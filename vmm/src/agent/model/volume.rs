//! Volumes: disks of a tenant's that outlive its VMs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Name;

/// What a volume begins as a copy of. Without it, it is full of zeros.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum VolumeSource {
    /// The root file system of an image, by its id or name.
    Image(String),
    /// A volume of the same tenant, which no running VM writes to.
    Volume(Name),
}

/// Body of `PUT /v1/tenants/{tenant}/volumes/{volume}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// Its size, in MiB. At least that of what it is a copy of; that, if it is missing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size_mib: Option<u64>,
    /// What it is a copy of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<VolumeSource>,
    /// Whether its room on the host's disk is taken now.
    #[serde(default)]
    pub preallocate: bool,
}

/// Body of `PATCH /v1/tenants/{tenant}/volumes/{volume}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeResize {
    /// New size, in MiB; not less than the present one.
    pub size_mib: u64,
}

/// Body of `POST /v1/tenants/{tenant}/volumes/{volume}/attach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// To which VM.
    pub vm: Name,
    /// Whether the guest may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// Body of `POST /v1/tenants/{tenant}/volumes/{volume}/detach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// From which VM.
    pub vm: Name,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its name.
    pub name: Name,
    /// Whose it is.
    pub tenant: Name,
    /// Its id, which no other volume ever has.
    pub id: String,
    /// Its size, in MiB.
    pub size_mib: u64,
    /// Room it takes on the host's disk, in bytes.
    pub allocated_bytes: u64,
    /// Whether that room was taken when it was made: guests can't give it back.
    #[serde(default)]
    pub preallocated: bool,
    /// VMs that have it among their disks.
    pub attached_to: Vec<Name>,
    /// `creating`, `ready` or `resizing`.
    pub state: String,
    /// When it was made.
    pub created_at: String,
}
