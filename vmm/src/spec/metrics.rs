//! Where metrics are written: `PUT /metrics`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The file that receives one JSON line of metrics at each flush. Fields not known here are ignored, as Firecracker
/// ignores them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    /// File or FIFO on the host.
    pub metrics_path: String,
}
