//! What goes over the agent's socket: requests and answers as JSON, and names that are checked. No I/O.
//!
//! Requests deny unknown fields. Times are RFC 3339 in UTC; sizes have their unit in their name.

mod denial;
mod host;
mod image;
mod name;
mod operation;
mod tenant;
mod vm;
mod volume;

pub use denial::{Denial, DenialCode, ErrorBody, ErrorDetail};
pub use host::{
    Capacity, DoctorReport, Event, Finding, GcReport, GcRequest, Host, HostState, HugePages, Leftover,
    NumaNode, Severity, Whoami,
};
pub use image::{Image, ImageImport};
pub use name::{Name, NameError};
pub use operation::{Operation, OperationKind, OperationState};
pub use tenant::{Access, Quota, QuotaUse, Role, Subnet, SubnetSpec, Tenant, TenantSpec};
pub use vm::{
    Action, ActionRequest, ActualState, ClassChange, DrainPolicy, EgressClass, Ended, InterfaceSpec,
    InterfaceStatus, Power, RestartPolicy, Vm, VmPut, VmSpec, VmStats, VmStatus, VolumeAttachment,
};
pub use volume::{AttachRequest, DetachRequest, Volume, VolumeCreate, VolumeResize, VolumeSource};
