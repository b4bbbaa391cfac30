//! Groups of rate limits as a configuration has them: over a host where everything can be opened.

use std::io;
use std::num::NonZeroU16;

use serde_json::{Value, json};

use crate::control::{Configure, Denial, HostFiles, Outcome, VmResources};
use crate::spec::{Drive, DriveBody, RateLimiter, TapSource};

struct Host;

impl HostFiles for Host {
    type Kernel = ();
    type Initrd = ();
    type Drive = ();
    type Tap = ();
    type Vsock = ();

    fn open_kernel(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn open_initrd(&mut self, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn open_drive(&mut self, _: &str, _: &Drive, _: Option<&()>) -> io::Result<()> {
        Ok(())
    }
    fn open_tap(&mut self, _: TapSource<'_>, _: NonZeroU16, _: Option<&()>) -> io::Result<()> {
        Ok(())
    }
    fn find_vhost(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn open_vsock(&mut self, _: &str, _: Option<&()>) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Rig(VmResources<Host>);

impl Rig {
    fn put(&mut self, what: Configure) -> Result<(), String> {
        text(self.0.configure(&mut Host, what))
    }

    fn group(&mut self, id: &str, limits: Value) -> Result<(), String> {
        self.put(Configure::RateLimiterGroup(id.to_owned(), limiter(limits)))
    }
}

fn text(answer: Result<Outcome, Denial>) -> Result<(), String> {
    answer.map(drop).map_err(|denial| denial.to_string())
}

fn limiter(limits: Value) -> RateLimiter {
    serde_json::from_value(limits).unwrap()
}

fn ops(size: u64) -> Value {
    json!({"ops": {"size": size, "refill_time": 100}})
}

fn drive(group: &str) -> Drive {
    let body =
        json!({"drive_id": "d", "path_on_host": "/d", "is_root_device": false, "rate_limiter_group": group});
    serde_json::from_value::<DriveBody>(body).unwrap().try_into().unwrap()
}

fn net(group: &str) -> Configure {
    let body = json!({"iface_id": "n", "host_dev_name": "tap", "rate_limiter_group": group});
    Configure::NetworkInterface(serde_json::from_value(body).unwrap())
}

#[test]
fn a_device_can_only_be_in_a_group_that_is_there() {
    let mut rig = Rig::default();
    let none = "There is no rate limiter group \"g\": make it with PUT /rate-limiter-groups/g first.";
    let refused = rig.put(Configure::Drive(drive("g"))).unwrap_err();
    assert_eq!(
        refused,
        format!("Drive config error: Unable to create the virtio block device: rate_limiter_group: {none}")
    );
    assert!(rig.put(net("g")).unwrap_err().contains(none));
    assert!(rig.0.drives().is_empty() && rig.0.nets().is_empty());
    assert_eq!(text(rig.0.plug_drive(&mut Host, drive("g"), |_| panic!("nothing is added"))), Err(refused));
    rig.group("g", ops(5)).unwrap();
    rig.put(Configure::Drive(drive("g"))).unwrap();
    rig.put(net("g")).unwrap();
    let view = serde_json::to_value(rig.0.view()).unwrap();
    assert_eq!(view["drives"][0]["rate_limiter_group"], "g");
    assert_eq!(view["network-interfaces"][0]["rate_limiter_group"], "g");
    assert_eq!(view["rate-limiter-groups"]["g"]["ops"]["size"], 5);
}

#[test]
fn an_interface_that_the_kernel_serves_is_in_no_group() {
    let mut rig = Rig::default();
    rig.group("g", ops(5)).unwrap();
    let body = json!({"iface_id": "n", "host_dev_name": "tap", "rate_limiter_group": "g", "vhost": true});
    let refused = rig.put(Configure::NetworkInterface(serde_json::from_value(body).unwrap())).unwrap_err();
    assert!(refused.contains("vhost: it can't keep the limits of a rate_limiter_group"), "{refused}");
    assert!(rig.0.nets().is_empty());
}

#[test]
fn limits_that_change_are_those_of_the_group_that_devices_have_already() {
    let mut rig = Rig::default();
    rig.group("g", ops(5)).unwrap();
    let held = rig.0.group(Some(&"g".to_owned())).unwrap().clone();
    assert!(!held.is_off());
    rig.0.patch_group("g", limiter(ops(0))).unwrap();
    assert!(held.is_off());
    rig.0.patch_group("g", limiter(json!({"bandwidth": {"size": 7, "refill_time": 1}}))).unwrap();
    rig.0.patch_group("g", limiter(ops(9))).unwrap();
    assert!(!held.is_off());
    let Ok(Outcome::RateLimiter(limits)) = rig.0.get_group("g") else { panic!("it is there") };
    assert_eq!((limits.bandwidth.unwrap().size, limits.ops.unwrap().size), (7, 9));
    rig.group("g", json!({})).unwrap();
    assert!(held.is_off(), "a PUT replaces all");
}

#[test]
fn a_group_in_use_and_one_that_is_not_there_can_not_be_removed() {
    let mut rig = Rig::default();
    rig.group("g", ops(5)).unwrap();
    rig.put(net("g")).unwrap();
    assert_eq!(
        text(rig.0.remove_group("g")).unwrap_err(),
        "Rate limiter group error: The rate limiter group \"g\" is in use by \"n\": only one that no device names can be \
         removed."
    );
    rig.group("other", ops(5)).unwrap();
    text(rig.0.remove_group("other")).unwrap();
    for answer in
        [rig.0.remove_group("other"), rig.0.get_group("other"), rig.0.patch_group("other", limiter(ops(1)))]
    {
        assert!(
            text(answer).unwrap_err().starts_with("Rate limiter group error: There is no rate limiter group")
        );
    }
    let view = serde_json::to_value(rig.0.view()).unwrap();
    assert!(view["rate-limiter-groups"]["other"].is_null());
}

#[test]
fn there_is_a_bound_on_groups() {
    let mut rig = Rig::default();
    for n in 0..64 {
        rig.group(&format!("g{n}"), ops(1)).unwrap();
    }
    assert_eq!(
        rig.group("one_more", ops(1)).unwrap_err(),
        "Rate limiter group error: There can be at most 64 rate limiter groups."
    );
    rig.group("g0", ops(2)).unwrap();
}
