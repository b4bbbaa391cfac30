//! The verbs: `PUT /actions` and `PATCH /vm`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A one-time action on the microVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Action {
    /// Write the metrics out now. After the start only.
    FlushMetrics,
    /// Build the microVM from what was configured, and start it. Once.
    InstanceStart,
    /// Press the ACPI power button: a guest that heeds it switches itself off. After the start only. Not Firecracker's.
    PressPowerButton,
    /// Press Ctrl, Alt and Del on the guest's keyboard. After the start only.
    SendCtrlAltDel,
}

/// Body of `PUT /actions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ActionBody {
    /// What to do.
    pub action_type: Action,
}

/// What the vCPUs should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum VmState {
    /// Stand still; nothing is emulated until the VM is resumed.
    Paused,
    /// Run.
    Resumed,
}

/// Body of `PATCH /vm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmStateBody {
    /// The state to bring the microVM to.
    pub state: VmState,
}
