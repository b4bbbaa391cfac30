//! Long work that can be waited for and cancelled.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Denial, Name};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// A VM's actual state is made what is wanted.
    VmReconcile,
    /// A VM starts.
    VmStart,
    /// A VM stops.
    VmStop,
    /// A VM is killed.
    VmKill,
    /// A VM pauses.
    VmPause,
    /// A VM goes on.
    VmResume,
    /// A VM is reset.
    VmReset,
    /// A VM is removed.
    VmDelete,
    /// An image is taken in.
    ImageImport,
    /// An image's files are hashed again.
    ImageVerify,
    /// A volume is made.
    VolumeCreate,
    /// A volume becomes larger.
    VolumeResize,
    /// The host is drained.
    HostDrain,
    /// The host is made ready to be switched off.
    HostShutdown,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// It failed; `error` says why.
    Failed,
    /// It was cancelled, and what it had begun is undone.
    Cancelled,
}

/// Long work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its id: `op-` and 16 hexadecimal digits.
    pub id: String,
    /// What is done.
    pub kind: OperationKind,
    /// To whose thing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tenant: Option<Name>,
    /// To which: the name of a VM or volume, or an image.
    pub target: String,
    /// How far it is.
    pub state: OperationState,
    /// How much is done, in `unit`s.
    pub done: u64,
    /// Of how much; 0 if that is not known.
    pub total: u64,
    /// `bytes`, `steps` or `vms`.
    pub unit: String,
    /// Whether it can be cancelled.
    pub cancellable: bool,
    /// Who asked for it: `uid:0`, or `agent`.
    pub requestor: String,
    /// When it began.
    pub created_at: String,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended_at: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Denial>,
}
