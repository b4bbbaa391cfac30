//! Tests of `config`: every refusal by its text, over a host in which a few paths exist.

use std::io;

use super::*;
use crate::spec::{MachineConfigPatch, TokenBucket};

/// A host with the files and devices whose names start with a slash or "tap"; a TAP is in use until it is dropped.
#[derive(Debug, Default)]
struct Host {
    opened: usize,
    vhost: bool,
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(2)
}

impl Host {
    fn open(&mut self, path: &str) -> io::Result<String> {
        self.opened += 1;
        if path.starts_with('/') { Ok(path.to_owned()) } else { Err(missing()) }
    }
}

impl HostFiles for Host {
    type Kernel = String;
    type Initrd = String;
    type Drive = String;
    type Tap = String;
    type Vsock = String;

    fn open_kernel(&mut self, path: &str) -> io::Result<String> {
        self.open(path)
    }

    fn open_initrd(&mut self, path: &str) -> io::Result<String> {
        self.open(path)
    }

    fn open_drive(
        &mut self,
        path: &str,
        _spec: &crate::spec::Drive,
        _replacing: Option<&String>,
    ) -> io::Result<String> {
        self.open(path)
    }

    fn open_tap(
        &mut self,
        source: TapSource<'_>,
        _queues: NonZeroU16,
        replacing: Option<&String>,
    ) -> io::Result<String> {
        match source {
            TapSource::Name("tap_busy") if replacing.is_none() => Err(io::Error::from_raw_os_error(16)),
            TapSource::Name(name) if name.starts_with("tap") => Ok(name.to_owned()),
            TapSource::Name(_) => Err(io::Error::from_raw_os_error(22)),
            TapSource::Fd(fd) => Ok(format!("fd {fd}")),
        }
    }

    fn find_vhost(&mut self) -> io::Result<()> {
        if self.vhost { Ok(()) } else { Err(missing()) }
    }

    fn open_vsock(&mut self, path: &str, replacing: Option<&String>) -> io::Result<String> {
        match replacing {
            Some(old) if old == path => Ok(old.clone()),
            _ => self.open(path),
        }
    }
}

#[test]
fn an_interface_of_the_kernels_is_refused_where_there_is_no_vhost_net_before_anything_is_opened() {
    let mut resources = VmResources::<Host>::default();
    let body = r#"{"iface_id":"a","host_dev_name":"tap0","vhost":true}"#;
    let ask = || Configure::NetworkInterface(serde_json::from_str(body).unwrap());
    let mut host = Host::default();
    let refusal = resources.configure(&mut host, ask()).unwrap_err().to_string();
    assert_eq!(
        refusal,
        "Network config error: Could not create the network device: vhost: No such file or directory (os error 2). \
         Without it only `vhost: false` is accepted."
    );
    assert!(resources.nets().is_empty());
    host.vhost = true;
    resources.configure(&mut host, ask()).unwrap();
    assert!(resources.view().network_interfaces[0].vhost);
}

fn drive(id: &str, path: &str, root: bool) -> Configure {
    let json = format!(r#"{{"drive_id":"{id}","path_on_host":"{path}","is_root_device":{root}}}"#);
    Configure::Drive(serde_json::from_str::<crate::spec::DriveBody>(&json).unwrap().try_into().unwrap())
}

fn net(id: &str, tap: &str, mac: &str) -> Configure {
    let json = format!(r#"{{"iface_id":"{id}","host_dev_name":"{tap}","guest_mac":"{mac}"}}"#);
    Configure::NetworkInterface(serde_json::from_str(&json).unwrap())
}

fn boot(kernel: &str, initrd: Option<&str>, args: Option<&str>) -> Configure {
    Configure::BootSource(BootSource {
        kernel_image_path: kernel.to_owned(),
        initrd_path: initrd.map(str::to_owned),
        boot_args: args.map(str::to_owned),
    })
}

/// A configuration in the making; refusals are returned as their text.
#[derive(Default)]
struct Rig {
    host: Host,
    vm: VmResources<Host>,
}

impl Rig {
    fn put(&mut self, what: Configure) -> Result<(), String> {
        self.vm.configure(&mut self.host, what).map(|_| ()).map_err(|denial| denial.to_string())
    }

    fn drive_ids(&self) -> Vec<&str> {
        self.vm.drives().iter().map(|drive| drive.spec.id.as_str()).collect()
    }
}

#[test]
fn kernel_and_initrd_that_cannot_be_opened_are_refused_and_change_nothing() {
    let mut rig = Rig::default();
    assert_eq!(
        rig.put(boot("foo.bar", None, None)).unwrap_err(),
        "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"
    );
    rig.put(boot("/k", None, None)).unwrap();
    assert_eq!(
        rig.put(boot("/k2", Some("foo.bar"), None)).unwrap_err(),
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. \
         No such file or directory (os error 2)"
    );
    assert!(
        rig.put(boot("/k2", None, Some("a\nb")))
            .unwrap_err()
            .contains("The kernel command line is invalid: ")
    );
    assert_eq!(rig.vm.boot().unwrap().kernel, "/k");
}

#[test]
fn a_start_without_a_kernel_has_firecrackers_text() {
    assert_eq!(
        Rig::default().vm.boot().err().unwrap().to_string(),
        "Start microvm error: Cannot start microvm without kernel configuration."
    );
}

#[test]
fn machine_configuration_is_refused_with_firecrackers_texts_and_then_unchanged() {
    let mut rig = Rig::default();
    let patch = |vcpu_count, mem_size_mib| {
        Configure::Machine(MachineConfigPatch { vcpu_count, mem_size_mib, ..MachineConfigPatch::default() })
    };
    rig.put(patch(Some(4), Some(256))).unwrap();
    assert_eq!(
        rig.put(patch(Some(33), None)).unwrap_err(),
        "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even \
         number if SMT is enabled."
    );
    assert_eq!(
        rig.put(patch(Some(2), Some(0))).unwrap_err(),
        "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size."
    );
    assert_eq!((rig.vm.machine().vcpu_count, rig.vm.machine().mem_size_mib), (4, 256));
}

#[test]
fn the_root_drive_comes_first_and_a_second_one_is_refused_unopened() {
    let mut rig = Rig::default();
    rig.put(drive("a", "/a", false)).unwrap();
    rig.put(drive("b", "/b", false)).unwrap();
    rig.put(drive("root", "/r", true)).unwrap();
    assert_eq!(rig.drive_ids(), ["root", "a", "b"]);
    let opened = rig.host.opened;
    for second in ["a", "new"] {
        assert_eq!(
            rig.put(drive(second, "/x", true)).unwrap_err(),
            "Drive config error: A root block device already exists!"
        );
    }
    assert_eq!(rig.host.opened, opened);
    assert_eq!(rig.drive_ids(), ["root", "a", "b"]);
}

#[test]
fn a_put_with_a_known_id_replaces_the_drive_in_its_place() {
    let mut rig = Rig::default();
    for id in ["a", "b", "c"] {
        rig.put(drive(id, "/1", false)).unwrap();
    }
    rig.put(drive("b", "/2", false)).unwrap();
    assert_eq!(rig.drive_ids(), ["a", "b", "c"]);
    assert_eq!(rig.vm.drives()[1].file, "/2");
    rig.put(drive("c", "/3", true)).unwrap();
    assert_eq!(rig.drive_ids(), ["c", "b", "a"], "swapped with the first, as Firecracker does");
    rig.put(drive("c", "/3", false)).unwrap();
    rig.put(drive("b", "/3", true)).unwrap();
}

#[test]
fn a_drive_that_cannot_be_opened_is_refused_and_leaves_its_predecessor() {
    let mut rig = Rig::default();
    rig.put(drive("a", "/a", true)).unwrap();
    assert_eq!(
        rig.put(drive("a", "foo.bar", true)).unwrap_err(),
        "Drive config error: Unable to create the virtio block device: Virtio backend error: \
         Error manipulating the backing file: No such file or directory (os error 2) foo.bar"
    );
    assert_eq!(rig.vm.drives()[0].file, "/a");
}

#[test]
fn a_mac_in_use_and_a_tap_that_cannot_be_opened_are_refused() {
    let mut rig = Rig::default();
    rig.put(net("1", "tap1", "06:00:00:00:00:01")).unwrap();
    rig.put(net("2", "tap2", "07:00:00:00:00:01")).unwrap();
    assert_eq!(
        rig.put(net("2", "tap2", "06:00:00:00:00:01")).unwrap_err(),
        "Network config error: The MAC address is already in use: 06:00:00:00:00:01"
    );
    rig.put(net("2", "tap2", "08:00:00:00:00:01")).unwrap();
    assert_eq!(
        rig.put(net("3", "eth0", "09:00:00:00:00:01")).unwrap_err(),
        "Network config error: Could not create the network device: Open tap device failed: Error while creating \
         ifreq structure: Invalid argument (os error 22). Invalid TUN/TAP Backend provided by eth0. \
         Check our documentation on setting up the network devices."
    );
    assert!(
        rig.put(net("3", "tap_busy", "09:00:00:00:00:01")).unwrap_err().contains("Device or resource busy")
    );
    rig.put(net("2", "tap_busy", "08:00:00:00:00:01")).unwrap();
    assert_eq!(rig.vm.nets().len(), 2);
}

#[test]
fn patching_a_drive_opens_merges_applies_and_notes_in_that_order() {
    let mut rig = Rig::default();
    rig.put(drive("a", "/a", true)).unwrap();
    let mut patch = |json: &str, result: Result<(), String>| {
        let patch = serde_json::from_str(json).unwrap();
        let answer = rig.vm.patch_drive(&mut rig.host, &patch, |_| result);
        (answer.map(|_| ()).map_err(|denial| denial.to_string()), rig.vm.view().drives.remove(0))
    };
    let limiter = r#"{"ops":{"size":5,"refill_time":100}}"#;
    let (answer, view) =
        patch(&format!(r#"{{"drive_id":"a","path_on_host":"/b","rate_limiter":{limiter}}}"#), Ok(()));
    assert_eq!(answer, Ok(()));
    assert_eq!((view.path_on_host.as_str(), view.rate_limiter.unwrap().ops.unwrap().size), ("/b", 5));

    for (json, text) in [
        (
            r#"{"drive_id":"a","path_on_host":"foo.bar"}"#,
            "Drive config error: Unable to patch the block device: Device manager error: Virtio backend error: \
             Error manipulating the backing file: No such file or directory (os error 2) foo.bar \
             Please verify the request arguments.",
        ),
        (
            r#"{"drive_id":"a"}"#,
            "Drive config error: Unable to patch the block device: Device manager error: \
             Running method expected different backend. Please verify the request arguments.",
        ),
        (
            r#"{"drive_id":"z","path_on_host":"/b"}"#,
            "Drive config error: Unable to patch the block device: Device manager error: Device not found: z. \
             Please verify the request arguments.",
        ),
    ] {
        assert_eq!(patch(json, Ok(())).0.unwrap_err(), text);
    }
    let (answer, view) = patch(r#"{"drive_id":"a","path_on_host":"/c"}"#, Err("no.".to_owned()));
    assert!(answer.unwrap_err().contains("Device manager error: no."));
    assert_eq!(view.path_on_host, "/b", "a change that the device refuses is not noted");
}

#[test]
fn patching_an_interface_merges_limits_and_a_patch_of_nothing_is_success() {
    let mut rig = Rig::default();
    rig.put(net("1", "tap1", "06:00:00:00:00:01")).unwrap();
    let patch: NetworkInterfacePatch = serde_json::from_str(
        r#"{"iface_id":"1","tx_rate_limiter":{"bandwidth":{"size":9,"refill_time":1}}}"#,
    )
    .unwrap();
    rig.vm.patch_net(&patch, |_, _, _| Ok(())).unwrap();
    let nothing: NetworkInterfacePatch = serde_json::from_str(r#"{"iface_id":"1"}"#).unwrap();
    assert_eq!(rig.vm.patch_net(&nothing, |_, _, _| Ok(())), Ok(Outcome::Done));
    assert_eq!(rig.vm.nets()[0].spec.tx_rate_limiter.unwrap().bandwidth.unwrap().size, 9);
    let unknown: NetworkInterfacePatch = serde_json::from_str(r#"{"iface_id":"7"}"#).unwrap();
    assert_eq!(
        rig.vm.patch_net(&unknown, |_, _, _| Ok(())).unwrap_err().to_string(),
        "Network config error: Unable to update the net device: Device manager error: Device not found: 7"
    );
}

fn vsock(cid: u32, path: &str) -> Configure {
    Configure::Vsock(Vsock { guest_cid: cid, uds_path: path.to_owned(), ..Vsock::default() })
}

#[test]
fn there_is_one_socket_device_which_is_replaced_whole_or_not_at_all() {
    let mut rig = Rig::default();
    rig.put(vsock(3, "/v")).unwrap();
    assert_eq!(
        rig.put(vsock(4, "nowhere/v")).unwrap_err(),
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: No such \
         file or directory (os error 2)"
    );
    assert_eq!(rig.vm.vsock().unwrap().spec.guest_cid, 3);
    let opened = rig.host.opened;
    rig.put(vsock(5, "/v")).unwrap();
    assert_eq!(
        (rig.host.opened, rig.vm.vsock().unwrap().spec.guest_cid),
        (opened, 5),
        "it listens there already"
    );
    rig.put(vsock(5, "/w")).unwrap();
    assert_eq!(rig.vm.vsock().unwrap().sockets, "/w");
}

#[test]
fn the_devices_with_one_limiter_get_other_limits_if_they_are_there() {
    let mut rig = Rig::default();
    let bucket = |size| Some(TokenBucket { size, one_time_burst: None, refill_time: 100 });
    let bytes = RateLimiter { bandwidth: bucket(10), ops: None };
    let none = rig.vm.patch_entropy(bytes, |_| panic!()).unwrap_err();
    assert!(none.to_string().contains("it gets one by PUT /entropy before the start"), "{none}");
    let none = rig.vm.patch_vsock(bytes, |_| panic!()).unwrap_err();
    assert!(none.to_string().contains("it gets one by PUT /vsock before the start"), "{none}");
    rig.put(Configure::Entropy(Entropy { rate_limiter: Some(bytes) })).unwrap();
    rig.put(vsock(3, "/v")).unwrap();
    let mut seen = Vec::new();
    let ops = RateLimiter { bandwidth: None, ops: bucket(5) };
    rig.vm.patch_entropy(ops, |limits| seen.push(limits)).unwrap();
    rig.vm.patch_vsock(ops, |limits| seen.push(limits)).unwrap();
    let off = RateLimiter { bandwidth: bucket(0), ops: bucket(0) };
    rig.vm.patch_entropy(off, |limits| seen.push(limits)).unwrap();
    assert_eq!(seen, [Some(RateLimiter { ops: ops.ops, ..bytes }), Some(ops), None]);
    assert_eq!(rig.vm.entropy().unwrap().rate_limiter, None);
    assert_eq!(rig.vm.vsock().unwrap().spec.rate_limiter, Some(ops));
}

#[test]
fn the_view_shows_what_was_put() {
    let mut rig = Rig::default();
    rig.put(boot("/k", None, Some(""))).unwrap();
    rig.put(drive("rootfs", "/r", true)).unwrap();
    rig.put(net("1", "tap1", "06:00:00:00:00:01")).unwrap();
    rig.put(Configure::Entropy(Entropy::default())).unwrap();
    rig.put(vsock(3, "/v")).unwrap();
    let json = serde_json::to_value(rig.vm.view()).unwrap();
    assert_eq!(
        json["boot-source"],
        serde_json::json!({"kernel_image_path":"/k","initrd_path":null,"boot_args":""})
    );
    assert_eq!(
        json["drives"],
        serde_json::json!([{
            "drive_id":"rootfs","partuuid":null,"is_root_device":true,"cache_type":"Unsafe","is_read_only":false,
            "path_on_host":"/r","rate_limiter":null,"io_engine":"Sync","socket":null
        }])
    );
    assert_eq!(
        json["network-interfaces"],
        serde_json::json!([{
            "iface_id":"1","host_dev_name":"tap1","guest_mac":"06:00:00:00:00:01",
            "rx_rate_limiter":null,"tx_rate_limiter":null
        }])
    );
    assert_eq!(json["entropy"], serde_json::json!({"rate_limiter":null}));
    assert_eq!(json["vsock"], serde_json::json!({"guest_cid":3,"uds_path":"/v"}));
}
