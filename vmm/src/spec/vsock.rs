//! Sockets between guest and host: `PUT /vsock`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{POLL_US_MAX, RateLimiter};

/// Smallest context id that a guest can have: those below are reserved (virtio 1.2 §5.10.4).
pub const GUEST_CID_MIN: u32 = 3;
/// Largest: the one above means any.
pub const GUEST_CID_MAX: u32 = u32::MAX - 1;

/// A virtio socket device. A microVM has at most one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context id, 3 to 4294967294.
    #[schema(minimum = 3)]
    pub guest_cid: u32,
    /// Where the host's side listens, a Unix socket of type stream: who connects and sends `CONNECT <port>\n` talks to that
    /// port of the guest once `OK <port>\n` comes back. The same for records at this path with `_seqpacket` after it. What the
    /// guest connects to port P of the host reaches whoever listens at this path with `_P` after it.
    pub uds_path: String,
    /// Deprecated; ignored.
    #[serde(default, skip_serializing)]
    pub vsock_id: Option<String>,
    /// Limits on payload, of both directions together (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// Microseconds, at most 1000, for which the device's thread looks for more work before it sleeps, as long as that pays: it takes a
    /// CPU. 0, no time at all, if missing (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_us: Option<u16>,
}

/// Why the description of a socket device was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VsockSpecError {
    /// The context id is reserved.
    #[error("The guest_cid {0} is reserved: it must be {GUEST_CID_MIN} to {GUEST_CID_MAX}.")]
    Cid(u32),
    /// Too long a time.
    #[error("The poll_us of the socket device must be 0 to {POLL_US_MAX}, not {0}.")]
    Poll(u16),
}

impl Vsock {
    /// Accepts the description if every field is in its range.
    ///
    /// # Errors
    /// [`VsockSpecError`] names the field.
    pub fn checked(mut self) -> Result<Self, VsockSpecError> {
        if !(GUEST_CID_MIN..=GUEST_CID_MAX).contains(&self.guest_cid) {
            return Err(VsockSpecError::Cid(self.guest_cid));
        }
        if let Some(us) = self.poll_us.filter(|us| *us > POLL_US_MAX) {
            return Err(VsockSpecError::Poll(us));
        }
        self.rate_limiter = self.rate_limiter.and_then(RateLimiter::effective);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_context_ids_are_refused_and_the_deprecated_id_is_not_shown() {
        let check = |cid: u64| {
            let json = format!(r#"{{"guest_cid":{cid},"uds_path":"v","vsock_id":"v"}}"#);
            serde_json::from_str::<Vsock>(&json).unwrap().checked()
        };
        for cid in [0, 1, 2, u64::from(u32::MAX)] {
            let text = check(cid).unwrap_err().to_string();
            assert_eq!(text, format!("The guest_cid {cid} is reserved: it must be 3 to 4294967294."));
        }
        let limited = r#"{"guest_cid":3,"uds_path":"v","rate_limiter":{"ops":{"size":0,"refill_time":1}}}"#;
        assert_eq!(serde_json::from_str::<Vsock>(limited).unwrap().checked().unwrap().rate_limiter, None);
        assert!(check(u64::from(GUEST_CID_MAX)).is_ok());
        let polled = |us: u32| {
            let json = format!(r#"{{"guest_cid":3,"uds_path":"v","poll_us":{us}}}"#);
            serde_json::from_str::<Vsock>(&json).unwrap().checked().map_err(|error| error.to_string())
        };
        assert_eq!(polled(1000).unwrap().poll_us, Some(1000));
        assert_eq!(
            polled(1001).unwrap_err(),
            "The poll_us of the socket device must be 0 to 1000, not 1001."
        );
        assert_eq!(serde_json::to_string(&check(3).unwrap()).unwrap(), r#"{"guest_cid":3,"uds_path":"v"}"#);
    }
}
