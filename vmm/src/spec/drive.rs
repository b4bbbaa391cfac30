//! Block devices: `/drives/{drive_id}`.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::RateLimiter;

/// Longest serial number a drive can show (virtio 1.2 §5.2.6: GET_ID answers 20 bytes).
pub const SERIAL_LEN_MAX: usize = 20;

/// Most queues of a drive: one for each vCPU that a machine may have.
pub const QUEUES_MAX: u16 = 32;

/// Longest time in microseconds for which a device's thread may look for work before it sleeps: orders of others wait as long.
pub const POLL_US_MAX: u16 = 1000;

/// Whether the guest is offered a flush command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CacheType {
    /// No flush is offered: data may be lost if the host fails.
    #[default]
    Unsafe,
    /// Flush is offered, and makes written data durable.
    Writeback,
}

/// How the VMM does the drive's I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum IoEngine {
    /// One request at a time, by system calls.
    #[default]
    Sync,
    /// Many at a time, by io_uring.
    Async,
}

/// Body of `PUT /drives/{drive_id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveBody {
    /// The same id as in the path.
    pub drive_id: String,
    /// Unique id of the partition that holds the root file system; without it the root is `/dev/vda`.
    pub partuuid: Option<String>,
    /// Whether the guest's root file system is on this drive.
    pub is_root_device: bool,
    /// Whether the guest is offered a flush command.
    #[serde(default)]
    pub cache_type: CacheType,
    /// Whether the guest can't write; false if missing.
    pub is_read_only: Option<bool>,
    /// Host path of a raw image or block device; or `fd:N`, a descriptor that the VMM inherited, or `received:N`, the one
    /// with number N of those sent along with the request.
    pub path_on_host: Option<String>,
    /// Limits on the drive's I/O.
    pub rate_limiter: Option<RateLimiter>,
    /// How the VMM does the drive's I/O; `Sync` if missing.
    pub io_engine: Option<IoEngine>,
    /// A vhost-user socket; not supported by this build.
    pub socket: Option<String>,
    /// Serial number that the guest reads, 1 to 20 ASCII characters (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Queues that the guest may use, 1 to 32; as many as it has vCPUs if missing (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_queues: Option<u16>,
    /// Whether reads and writes bypass the host's page cache (O_DIRECT); false if missing (an addition to Firecracker's
    /// fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    /// Whether blocks that the guest discards go back to the host; true if missing. Without it DISCARD is not offered, and zeroes
    /// that the guest writes keep their blocks (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<bool>,
    /// Name of a group of rate limits (`/rate-limiter-groups`) that the drive draws on, too (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter_group: Option<String>,
    /// Microseconds, at most 1000, for which a thread of the drive looks for more requests before it sleeps, as long as that pays: it
    /// takes a CPU and saves the guest's kicks. 0, no time at all, if missing (an addition to Firecracker's fields).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_us: Option<u16>,
}

/// A drive that can be had, as far as its description goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Its name in the API.
    pub id: String,
    /// The image or block device.
    pub path: String,
    /// Whether the guest's root file system is on it.
    pub root: bool,
    /// Partition that holds the root file system.
    pub partuuid: Option<String>,
    /// Whether the guest can't write.
    pub read_only: bool,
    /// Whether the guest is offered a flush command.
    pub cache: CacheType,
    /// How the VMM does its I/O.
    pub engine: IoEngine,
    /// Limits on its I/O.
    pub limiter: Option<RateLimiter>,
    /// Serial number that the guest reads, if one was asked for.
    pub serial: Option<String>,
    /// Queues that the guest may use, if their number was asked for.
    pub queues: Option<NonZeroU16>,
    /// Whether I/O bypasses the host's page cache.
    pub direct: bool,
    /// Whether the guest may give blocks back.
    pub discard: bool,
    /// Limits that it has together with other devices.
    pub group: Option<String>,
    /// Microseconds for which its threads look for more before they sleep.
    pub poll_us: u16,
}

/// Why a drive's description was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveSpecError {
    /// No image is named.
    #[error("Invalid block config.")]
    NoPath,
    /// A vhost-user back end.
    #[error(
        "vhost-user drives are not supported by this build: name a raw image or block device in path_on_host, not a socket."
    )]
    VhostUser,
    /// The serial number can't be shown to the guest.
    #[error(
        "The serial must be 1 to {SERIAL_LEN_MAX} printable ASCII characters, without spaces at its ends."
    )]
    Serial,
    /// The partition can't be named on the kernel's command line.
    #[error("The partuuid must be one or more printable ASCII characters, without spaces and quotes.")]
    Partuuid,
    /// No such number of queues.
    #[error("The num_queues of a drive must be 1 to {QUEUES_MAX}, not {0}.")]
    Queues(u16),
    /// Too long a time.
    #[error("The poll_us of a drive must be 0 to {POLL_US_MAX}, not {0}.")]
    Poll(u16),
}

impl TryFrom<DriveBody> for Drive {
    type Error = DriveSpecError;

    fn try_from(body: DriveBody) -> Result<Self, DriveSpecError> {
        if body.socket.is_some() {
            return Err(DriveSpecError::VhostUser);
        }
        if let Some(serial) = &body.serial {
            let printable = serial.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            if serial.is_empty() || serial.len() > SERIAL_LEN_MAX || !printable || serial.trim() != serial {
                return Err(DriveSpecError::Serial);
            }
        }
        if let Some(partuuid) = &body.partuuid
            && (partuuid.is_empty() || !partuuid.bytes().all(|b| b.is_ascii_graphic() && b != b'"'))
        {
            return Err(DriveSpecError::Partuuid);
        }
        let queues = body.num_queues.map(|count| {
            NonZeroU16::new(count)
                .filter(|count| count.get() <= QUEUES_MAX)
                .ok_or(DriveSpecError::Queues(count))
        });
        Ok(Self {
            id: body.drive_id,
            path: body.path_on_host.ok_or(DriveSpecError::NoPath)?,
            root: body.is_root_device,
            partuuid: body.partuuid,
            read_only: body.is_read_only.unwrap_or(false),
            cache: body.cache_type,
            engine: body.io_engine.unwrap_or_default(),
            limiter: body.rate_limiter.and_then(RateLimiter::effective),
            serial: body.serial,
            queues: queues.transpose()?,
            direct: body.direct.unwrap_or(false),
            discard: body.discard.unwrap_or(true),
            group: body.rate_limiter_group,
            poll_us: match body.poll_us.unwrap_or(0) {
                us if us > POLL_US_MAX => return Err(DriveSpecError::Poll(us)),
                us => us,
            },
        })
    }
}

/// Body of `PATCH /drives/{drive_id}`: what is missing stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrivePatch {
    /// The same id as in the path.
    pub drive_id: String,
    /// Another image; the guest is told of its size.
    pub path_on_host: Option<String>,
    /// Other limits: a bucket that is missing stays, one of zeros takes the limit away.
    pub rate_limiter: Option<RateLimiter>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(json: &str) -> Result<Drive, DriveSpecError> {
        serde_json::from_str::<DriveBody>(json).unwrap().try_into()
    }

    #[test]
    fn a_drive_without_its_optional_fields_is_writable_unsafe_and_sync() {
        let drive = drive(r#"{"drive_id":"a","path_on_host":"/img","is_root_device":false}"#).unwrap();
        assert_eq!((drive.read_only, drive.cache, drive.engine), (false, CacheType::Unsafe, IoEngine::Sync));
        assert_eq!((drive.partuuid, drive.limiter, drive.serial), (None, None, None));
    }

    #[test]
    fn a_drive_without_a_path_or_with_a_socket_is_refused() {
        assert_eq!(drive(r#"{"drive_id":"a","is_root_device":false}"#), Err(DriveSpecError::NoPath));
        assert_eq!(
            drive(r#"{"drive_id":"a","is_root_device":false,"socket":"/s"}"#),
            Err(DriveSpecError::VhostUser)
        );
    }

    #[test]
    fn a_partuuid_is_one_word_of_the_kernel_command_line() {
        for (partuuid, fine) in [
            ("0eaa91a0-01", true),
            ("0eaa91a0-01/PARTNROFF=1", true),
            ("", false),
            ("1 init=/bin/sh", false),
            ("1\\u0000", false),
            ("1\\n", false),
            ("\\\"1", false),
            ("é", false),
        ] {
            let json = format!(
                r#"{{"drive_id":"a","path_on_host":"p","is_root_device":true,"partuuid":"{partuuid}"}}"#
            );
            assert_eq!(drive(&json).err(), (!fine).then_some(DriveSpecError::Partuuid), "{partuuid:?}");
        }
    }

    #[test]
    fn a_serial_is_1_to_20_printable_ascii_characters() {
        for (serial, fine) in [
            ("x", true),
            ("a b", true),
            ("12345678901234567890", true),
            ("123456789012345678901", false),
            ("", false),
            ("é", false),
            (" a", false),
            ("a\\n", false),
        ] {
            let json = format!(
                r#"{{"drive_id":"a","path_on_host":"p","is_root_device":false,"serial":"{serial}"}}"#
            );
            assert_eq!(drive(&json).is_ok(), fine, "{serial:?}");
        }
    }

    #[test]
    fn a_drive_is_polled_for_a_millisecond_at_most() {
        for (asked, expected) in
            [("null", Ok(0)), ("0", Ok(0)), ("1000", Ok(1000)), ("1001", Err(DriveSpecError::Poll(1001)))]
        {
            let json =
                format!(r#"{{"drive_id":"a","path_on_host":"p","is_root_device":false,"poll_us":{asked}}}"#);
            assert_eq!(drive(&json).map(|drive| drive.poll_us), expected);
        }
    }

    #[test]
    fn a_drive_has_1_to_32_queues_or_as_many_as_vcpus() {
        for (asked, expected) in [
            ("null", Ok(None)),
            ("1", Ok(NonZeroU16::new(1))),
            ("32", Ok(NonZeroU16::new(32))),
            ("0", Err(DriveSpecError::Queues(0))),
            ("33", Err(DriveSpecError::Queues(33))),
        ] {
            let json = format!(
                r#"{{"drive_id":"a","path_on_host":"p","is_root_device":false,"num_queues":{asked}}}"#
            );
            assert_eq!(drive(&json).map(|drive| drive.queues), expected);
        }
        assert_eq!(
            DriveSpecError::Queues(33).to_string(),
            "The num_queues of a drive must be 1 to 32, not 33."
        );
    }
}
