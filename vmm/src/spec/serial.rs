//! The serial console: `PUT /serial`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::TokenBucket;

/// Where the guest's first serial port writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// File or FIFO on the host; standard output if missing.
    pub serial_out_path: Option<String>,
    /// How many bytes the guest may print; what exceeds it is dropped and counted. 1 MiB a second if missing; a bucket of
    /// size 0 lifts the limit.
    pub rate_limiter: Option<TokenBucket>,
}
