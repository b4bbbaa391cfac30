//! A microVM as far as it is configured: what the driver does with commands, without a host and without a machine.

use std::io;
use std::num::NonZeroU16;

use vmm::api::{Asked, Method, Reply, route};
use vmm::control::{
    Answer, Command, Configure, Denial, DriveChange, HostFiles, Outcome, State, Verdict, VmResources, admit,
};
use vmm::spec::{ConfigFile, Drive, TapSource, Version, VmConfig, VmInfo};

/// A host with the files whose paths begin with a slash and the TAP devices whose names begin with "tap".
pub struct Host;

fn open(path: &str, prefix: &str) -> io::Result<String> {
    if path.starts_with(prefix) { Ok(path.to_owned()) } else { Err(io::ErrorKind::NotFound.into()) }
}

impl HostFiles for Host {
    type Kernel = String;
    type Initrd = String;
    type Drive = String;
    type Tap = String;
    type Vsock = String;

    fn open_kernel(&mut self, path: &str) -> io::Result<String> {
        open(path, "/")
    }

    fn open_initrd(&mut self, path: &str) -> io::Result<String> {
        open(path, "/")
    }

    fn open_drive(&mut self, path: &str, _spec: &Drive, _replacing: Option<&String>) -> io::Result<String> {
        open(path, "/")
    }

    fn open_tap(
        &mut self,
        source: TapSource<'_>,
        _queues: NonZeroU16,
        _replacing: Option<&String>,
    ) -> io::Result<String> {
        match source {
            TapSource::Name(name) => open(name, "tap"),
            TapSource::Fd(fd) => Ok(fd.to_string()),
        }
    }

    fn find_vhost(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn open_vsock(&mut self, path: &str, _replacing: Option<&String>) -> io::Result<String> {
        open(path, "/")
    }
}

/// What the device says to a change at run time: `Err` if the host's side of it is called "/bad".
fn apply(name: Option<&str>) -> Result<(), String> {
    if name.is_some_and(|name| name.starts_with("/bad")) { Err("no".into()) } else { Ok(()) }
}

/// The microVM.
pub struct MicroVm {
    state: State,
    resources: VmResources<Host>,
}

impl Default for MicroVm {
    fn default() -> Self {
        Self { state: State::NotStarted, resources: VmResources::default() }
    }
}

impl MicroVm {
    /// What a client can see of it.
    pub fn view(&self) -> (State, VmConfig) {
        (self.state, self.resources.view())
    }

    /// Carries out a command, if it is allowed now.
    pub fn take(&mut self, command: Command) -> Answer {
        match admit(self.state, &command) {
            Verdict::Do => {}
            Verdict::AlreadySo => return Ok(Outcome::Done),
            Verdict::Deny(denial) => return Err(denial),
        }
        match command {
            Command::GetInfo => return Ok(Outcome::Info(VmInfo::new("fuzz", self.state.into()))),
            Command::GetVersion => return Ok(Outcome::Version(Version::default())),
            Command::GetVmConfig => return Ok(Outcome::VmConfig(Box::new(self.resources.view()))),
            Command::GetMachineConfig => {
                return Ok(Outcome::MachineConfig(self.resources.machine().clone()));
            }
            Command::GetRateLimiterGroup(id) => return self.resources.get_group(&id),
            Command::PatchRateLimiterGroup(id, change) => return self.resources.patch_group(&id, change),
            Command::DeleteRateLimiterGroup(id) => return self.resources.remove_group(&id),
            Command::Configure(Configure::Drive(spec)) if self.state != State::NotStarted => {
                return self.resources.plug_drive(&mut Host, spec, |drive| apply(Some(&drive.file)));
            }
            Command::Configure(Configure::NetworkInterface(spec)) if self.state != State::NotStarted => {
                return self
                    .resources
                    .plug_net(&mut Host, spec, |net| apply((net.tap == "tapbad").then_some("/bad")));
            }
            Command::Configure(what) => return self.resources.configure(&mut Host, what),
            Command::Unplug(what) => {
                let place = self.resources.place_of(&what)?;
                self.resources.remove(place);
            }
            Command::Start => {
                self.resources.boot()?;
                self.state = State::Running;
            }
            Command::Pause => self.state = State::Paused,
            Command::Resume => self.state = State::Running,
            Command::PatchDrive(patch) => {
                let change = |change: DriveChange<'_, Host>| apply(change.file.map(|f| &**f));
                return self.resources.patch_drive(&mut Host, &patch, change);
            }
            Command::PatchNetworkInterface(patch) => {
                let bad = patch.rx_rate_limiter.and_then(|limiter| limiter.ops).is_some_and(|b| b.size == 13);
                return self.resources.patch_net(&patch, |_, _, _| apply(bad.then_some("/bad")));
            }
            Command::PatchEntropy(change) => return self.resources.patch_entropy(change, |_| ()),
            Command::PatchVsock(change) => return self.resources.patch_vsock(change, |_| ()),
            Command::PutLogger(_)
            | Command::PutMetrics(_)
            | Command::PressPowerButton
            | Command::SendCtrlAltDel
            | Command::FlushMetrics => {}
        }
        Ok(Outcome::Done)
    }

    /// One request from its bytes to the status of its answer.
    ///
    /// # Panics
    /// If a request that was refused, or only asked, changed something; or if an answer is not well-formed.
    pub fn request(&mut self, method: Method, target: &str, body: &[u8]) -> u16 {
        let before = self.view();
        let (reply, may_change) = match route(method, target, body) {
            Err(error) => (Reply::refused(&error.to_string()), false),
            Ok(routed) => match routed.asked {
                Asked::Command(command) => {
                    let asks_only = method == Method::Get;
                    let answer = self.take(command);
                    if let Err(denial) = &answer {
                        assert!(!matches!(denial, Denial::Gone | Denial::Internal(_)), "{denial}");
                    }
                    (Reply::from(&answer), answer.is_ok() && !asks_only)
                }
                // The server answers these without asking the microVM.
                Asked::Metrics | Asked::Events { .. } | Asked::OpenApi => {
                    assert_eq!(method, Method::Get);
                    return 200;
                }
            },
        };
        if !may_change {
            assert_eq!(self.view(), before, "a {method:?} of {target:?} changed something");
        }
        let status = reply.status.as_u16();
        assert_eq!(status == 204, reply.body.is_empty());
        if status != 204 {
            serde_json::from_slice::<serde_json::Value>(&reply.body).expect("an answer is JSON");
        }
        status
    }

    /// Asks for all that it has once more, as a client does that restores what it saw.
    ///
    /// # Panics
    /// If that is refused, or changes anything.
    pub fn put_again(&mut self) {
        if self.state != State::NotStarted {
            return;
        }
        let (_, view) = self.view();
        let mut put = |target: String, body: serde_json::Result<Vec<u8>>| {
            let body = body.expect("what is shown is JSON");
            let status = self.request(Method::Put, &target, &body);
            assert_eq!(status, 204, "{target} {}", String::from_utf8_lossy(&body));
        };
        put("/machine-config".into(), serde_json::to_vec(&view.machine_config));
        if !view.boot_source.kernel_image_path.is_empty() {
            put("/boot-source".into(), serde_json::to_vec(&view.boot_source));
        }
        for (id, limits) in &view.rate_limiter_groups {
            put(format!("/rate-limiter-groups/{id}"), serde_json::to_vec(limits));
        }
        for drive in &view.drives {
            put(format!("/drives/{}", drive.drive_id), serde_json::to_vec(drive));
        }
        for net in &view.network_interfaces {
            put(format!("/network-interfaces/{}", net.iface_id), serde_json::to_vec(net));
        }
        if let Some(entropy) = &view.entropy {
            put("/entropy".into(), serde_json::to_vec(entropy));
        }
        assert_eq!(self.view().1, view);
        if !view.boot_source.kernel_image_path.is_empty() {
            // The same as a file: another way in, the same microVM.
            let mut other = Self::default();
            let json = serde_json::to_vec(&view).expect("what is shown is JSON");
            let file = ConfigFile::parse(&json).expect("what is shown is a configuration");
            other.configure_from(file).expect("it was accepted before");
            assert_eq!(other.view().1, view);
        }
    }

    /// Configures all that `file` says, in the driver's order.
    ///
    /// # Errors
    /// The first [`Denial`].
    pub fn configure_from(&mut self, file: ConfigFile) -> Result<(), Denial> {
        let mut configure = |what| self.take(Command::Configure(what)).map(drop);
        configure(Configure::BootSource(file.boot_source))?;
        file.machine_config.into_iter().try_for_each(|spec| configure(Configure::Machine(spec.into())))?;
        file.rate_limiter_groups
            .into_iter()
            .try_for_each(|(id, limits)| configure(Configure::RateLimiterGroup(id, limits)))?;
        file.drives.into_iter().try_for_each(|spec| configure(Configure::Drive(spec)))?;
        file.network_interfaces
            .into_iter()
            .try_for_each(|spec| configure(Configure::NetworkInterface(spec)))?;
        file.entropy.into_iter().try_for_each(|spec| configure(Configure::Entropy(spec)))?;
        file.vsock.into_iter().try_for_each(|spec| configure(Configure::Vsock(spec)))
    }
}
