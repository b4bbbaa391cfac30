//! The random number device: `PUT /entropy`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::RateLimiter;

/// A virtio-rng device. A microVM has at most one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// How fast the guest may draw random bytes.
    pub rate_limiter: Option<RateLimiter>,
}
