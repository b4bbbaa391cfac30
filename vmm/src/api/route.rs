//! Method, path and body in; command or refusal out. A pure function, tested with bytes.
//!
//! Paths are read as Firecracker reads them: slashes at the start are trimmed, the first segment selects the resource,
//! the second its id, and what follows is ignored.

use serde::Deserialize;

use crate::control::{Command, Configure, Denial, DriveError, NetError, Unplug, VsockError};
use crate::spec::{
    Action, ActionBody, BootSource, Drive, DriveBody, DrivePatch, Entropy, IdError, Logger, MachineConfig,
    MachineConfigPatch, Metrics, NetworkInterface, NetworkInterfacePatch, RateLimiter, RateLimiterPatch,
    Serial, VmState, VmStateBody, Vsock, check_resource_id,
};

/// The methods that are understood; any other is answered before it gets here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Show.
    Get,
    /// Create or replace.
    Put,
    /// Change.
    Patch,
    /// Remove.
    Delete,
}

impl Method {
    /// The method of this name, if it is understood. Names are case sensitive.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "GET" => Some(Self::Get),
            "PUT" => Some(Self::Put),
            "PATCH" => Some(Self::Patch),
            "DELETE" => Some(Self::Delete),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one for each request, which is moved on at once")]
pub enum Asked {
    /// Something of the microVM: a question for its driver.
    Command(Command),
    /// The metrics, as OpenMetrics text.
    Metrics,
    /// The events, those after `since` first, then the coming ones.
    Events {
        /// Sequence number of the last event that is known already.
        since: u64,
    },
    /// The description of this API.
    OpenApi,
}

/// A request that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// What it asks for.
    pub asked: Asked,
    /// Whether it uses something deprecated; the answer says so.
    pub deprecated: bool,
}

impl From<Command> for Routed {
    fn from(command: Command) -> Self {
        Self { asked: Asked::Command(command), deprecated: false }
    }
}

/// Why a request was refused without asking the microVM. Its text is the `fault_message`.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No such resource, or not with this method.
    #[error("Invalid request method and/or path: {} {path}.", method.name())]
    MethodOrPath {
        /// What to do.
        method: Method,
        /// With what.
        path: String,
    },
    /// A body where there can't be one. (Firecracker speaks of GET even if it was DELETE.)
    #[error("GET request cannot have a body.")]
    UnexpectedBody,
    /// No body where there must be one.
    #[error("Empty {} request.", .0.name())]
    EmptyBody(Method),
    /// The body isn't JSON, or not of the form described.
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(#[from] serde_json::Error),
    /// The id in the path can't be one.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Path and body name different drives.
    #[error("The id from the path does not match the id from the body!")]
    DriveIdMismatch,
    /// Path and body name different interfaces.
    #[error("The id from the path [{path}] does not match the id from the body [{body}]!")]
    NetIdMismatch {
        /// Named in the path.
        path: String,
        /// Named in the body.
        body: String,
    },
    /// The cursor of an event stream.
    #[error(
        "The query {0:?} is invalid: it may be `since` with the sequence number of an event, as in since=7."
    )]
    Query(String),
    /// A resource of Firecracker's that this build hasn't.
    #[error(
        "The requested operation is not supported: this build has no {} /{path}. It has /, /version, /vm, /vm/config, \
         /actions, /machine-config, /boot-source, /drives, /network-interfaces, /rate-limiter-groups, /entropy, /vsock, /serial, \
         /logger, /metrics, /events and /openapi.json.",
        method.name()
    )]
    NotSupported {
        /// What to do.
        method: Method,
        /// With what.
        path: String,
    },
    /// The body is of the right form, but describes something that can't be had.
    #[error(transparent)]
    Spec(#[from] Denial),
}

/// Understands a request; `target` is path and query.
///
/// # Errors
/// [`ApiError`], always to be answered with status 400.
pub fn route(method: Method, target: &str, body: &[u8]) -> Result<Routed, ApiError> {
    let mut segments = target.trim_start_matches('/').split_terminator('/');
    let resource = segments.next().unwrap_or("");
    let empty = body.is_empty();
    match method {
        Method::Get | Method::Delete if !empty => Err(ApiError::UnexpectedBody),
        Method::Put if empty => Err(ApiError::EmptyBody(method)),
        // Firecracker lets these two have no body.
        Method::Patch if empty && !matches!(resource, "balloon" | "hotplug") => {
            Err(ApiError::EmptyBody(method))
        }
        Method::Get => get(resource, segments.next()),
        Method::Put => put(resource, segments.next(), body),
        Method::Patch => patch(resource, segments.next(), body),
        Method::Delete => delete(resource, segments.next()),
    }
}

fn get(resource: &str, second: Option<&str>) -> Result<Routed, ApiError> {
    let asked = |asked| Ok(Routed { asked, deprecated: false });
    let (name, query) =
        resource.split_once('?').map_or((resource, None), |(name, query)| (name, Some(query)));
    match (resource, second) {
        ("", _) => Ok(Command::GetInfo.into()),
        ("version", _) => Ok(Command::GetVersion.into()),
        ("vm", Some("config")) => Ok(Command::GetVmConfig.into()),
        ("machine-config", _) => Ok(Command::GetMachineConfig.into()),
        ("rate-limiter-groups", id) => Ok(Command::GetRateLimiterGroup(checked_id(id)?.to_owned()).into()),
        ("openapi.json", _) => asked(Asked::OpenApi),
        _ if name == "metrics" => asked(Asked::Metrics),
        _ if name == "events" => asked(Asked::Events { since: cursor(query)? }),
        _ => Err(unknown(Method::Get, resource)),
    }
}

fn cursor(query: Option<&str>) -> Result<u64, ApiError> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(0) };
    let number = query.strip_prefix("since=").and_then(|number| number.parse().ok());
    number.ok_or_else(|| ApiError::Query(query.to_owned()))
}

fn put(resource: &str, id: Option<&str>, body: &[u8]) -> Result<Routed, ApiError> {
    Ok(match resource {
        "actions" => match json::<ActionBody>(body)?.action_type {
            Action::FlushMetrics => Command::FlushMetrics,
            Action::InstanceStart => Command::Start,
            Action::SendCtrlAltDel => Command::SendCtrlAltDel,
            Action::PressPowerButton => Command::PressPowerButton,
        },
        "boot-source" => Command::Configure(Configure::BootSource(json::<BootSource>(body)?)),
        "drives" => {
            let id = checked_id(id)?;
            let body: DriveBody = json(body)?;
            if body.drive_id != id {
                return Err(ApiError::DriveIdMismatch);
            }
            let drive = Drive::try_from(body).map_err(|error| Denial::from(DriveError::from(error)))?;
            Command::Configure(Configure::Drive(drive))
        }
        "entropy" => Command::Configure(Configure::Entropy(json::<Entropy>(body)?)),
        "logger" => Command::PutLogger(json::<Logger>(body)?),
        "machine-config" => {
            let config: MachineConfig = json(body)?;
            return Ok(machine(config.into()));
        }
        "metrics" => Command::PutMetrics(json::<Metrics>(body)?),
        "network-interfaces" => {
            let id = checked_id(id)?;
            let interface: NetworkInterface = json(body)?;
            same_interface(id, &interface.iface_id)?;
            let interface = interface.checked().map_err(|error| Denial::from(NetError::from(error)))?;
            Command::Configure(Configure::NetworkInterface(interface))
        }
        "rate-limiter-groups" => {
            let id = checked_id(id)?.to_owned();
            Command::Configure(Configure::RateLimiterGroup(id, json::<RateLimiter>(body)?))
        }
        "vsock" => {
            let vsock: Vsock = json(body)?;
            let deprecated = vsock.vsock_id.is_some();
            let vsock = vsock.checked().map_err(|error| Denial::from(VsockError::from(error)))?;
            return Ok(Routed {
                asked: Asked::Command(Command::Configure(Configure::Vsock(vsock))),
                deprecated,
            });
        }
        "serial" => Command::Configure(Configure::Serial(json::<Serial>(body)?)),
        _ => return Err(unknown(Method::Put, resource)),
    }
    .into())
}

fn patch(resource: &str, id: Option<&str>, body: &[u8]) -> Result<Routed, ApiError> {
    Ok(match resource {
        "drives" => {
            let id = checked_id(id)?;
            let patch: DrivePatch = json(body)?;
            if patch.drive_id != id {
                return Err(ApiError::DriveIdMismatch);
            }
            Command::PatchDrive(patch)
        }
        "machine-config" => {
            let patch: MachineConfigPatch = json(body)?;
            if patch == MachineConfigPatch::default() {
                return Err(ApiError::EmptyBody(Method::Patch));
            }
            return Ok(machine(patch));
        }
        "network-interfaces" => {
            let id = checked_id(id)?;
            let patch: NetworkInterfacePatch = json(body)?;
            same_interface(id, &patch.iface_id)?;
            Command::PatchNetworkInterface(patch)
        }
        "entropy" => Command::PatchEntropy(json::<RateLimiterPatch>(body)?.rate_limiter),
        "vsock" => Command::PatchVsock(json::<RateLimiterPatch>(body)?.rate_limiter),
        "rate-limiter-groups" => {
            let id = checked_id(id)?.to_owned();
            Command::PatchRateLimiterGroup(id, json::<RateLimiter>(body)?)
        }
        "vm" => match json::<VmStateBody>(body)?.state {
            VmState::Paused => Command::Pause,
            VmState::Resumed => Command::Resume,
        },
        _ => return Err(unknown(Method::Patch, resource)),
    }
    .into())
}

fn delete(resource: &str, id: Option<&str>) -> Result<Routed, ApiError> {
    let of: fn(String) -> Command = match resource {
        "drives" => |id| Command::Unplug(Unplug::Drive(id)),
        "network-interfaces" => |id| Command::Unplug(Unplug::NetworkInterface(id)),
        "rate-limiter-groups" => Command::DeleteRateLimiterGroup,
        _ => return Err(unknown(Method::Delete, resource)),
    };
    Ok(of(checked_id(id)?.to_owned()).into())
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    Ok(serde_json::from_slice(body)?)
}

fn machine(patch: MachineConfigPatch) -> Routed {
    let deprecated = patch.cpu_template.is_some();
    Routed { asked: Asked::Command(Command::Configure(Configure::Machine(patch))), deprecated }
}

fn checked_id(id: Option<&str>) -> Result<&str, ApiError> {
    let id = id.ok_or(IdError::Empty)?;
    check_resource_id(id)?;
    Ok(id)
}

fn same_interface(path: &str, body: &str) -> Result<(), ApiError> {
    if path == body {
        return Ok(());
    }
    Err(ApiError::NetIdMismatch { path: path.to_owned(), body: body.to_owned() })
}

/// Refuses what isn't there: by name if Firecracker has it with this method, else as it refuses what it hasn't.
fn unknown(method: Method, resource: &str) -> ApiError {
    let firecrackers: &[&str] = match method {
        Method::Get => &["balloon", "mmds", "hotplug"],
        Method::Put => &["balloon", "cpu-config", "hotplug", "mmds", "pmem", "snapshot"],
        Method::Patch => &["balloon", "hotplug", "mmds", "pmem"],
        Method::Delete => &["pmem"],
    };
    let path = resource.to_owned();
    if firecrackers.contains(&resource) {
        ApiError::NotSupported { method, path }
    } else {
        ApiError::MethodOrPath { method, path }
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
