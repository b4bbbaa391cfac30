//! Devices that come and go, with a guest that knows nothing of that.

use serde_json::json;

use super::common::{Bus, Vm, zeros};
use super::{boot, kvm};

fn body(vm: &Vm, id: &str, root: bool) -> String {
    json!({"drive_id": id, "path_on_host": vm.path("disk"), "is_root_device": root, "is_read_only": true})
        .to_string()
}

#[test]
fn without_a_pci_bus_nothing_comes_or_goes() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(Bus::Mmio.flags());
    zeros(&vm.path("disk"), 4096);
    assert!(vm.refused("DELETE", "/drives/d", "").contains("before starting the microVM"));
    vm.put_drive("d", &vm.path("disk"), &json!({"is_read_only": true}));
    boot(&vm, "do=halt");
    for (method, path, body) in [
        ("PUT", "/drives/e", body(&vm, "e", false)),
        ("PUT", "/network-interfaces/n", json!({"iface_id": "n", "host_dev_name": "x"}).to_string()),
        ("DELETE", "/drives/d", String::new()),
        ("DELETE", "/network-interfaces/n", String::new()),
    ] {
        let refusal = vm.refused(method, path, &body);
        assert!(
            refusal.contains("after starting the microVM. PCI is not enabled"),
            "{method} {path}: {refusal}"
        );
    }
    assert_eq!(vm.get("/vm/config")["drives"].as_array().unwrap().len(), 1);
}

#[test]
fn what_can_not_come_or_go_is_refused_and_changes_nothing() {
    if !kvm() {
        return;
    }
    let vm = Vm::start(Bus::Pci.flags());
    zeros(&vm.path("disk"), 4096);
    vm.put_drive("root", &vm.path("disk"), &json!({"is_read_only": true, "is_root_device": true}));
    boot(&vm, "do=halt");
    assert_eq!(vm.refused("DELETE", "/drives/other", ""), "Device not found: other");
    assert_eq!(vm.refused("DELETE", "/drives/root", ""), "Cannot unplug root device: root");
    assert!(vm.refused("DELETE", "/drives/a-b", "").contains("ID"));
    let put = |id: &str, root| vm.refused("PUT", &format!("/drives/{id}"), &body(&vm, id, root));
    assert_eq!(put("root", false), "Drive config error: Device ID in use: root");
    assert!(put("late", true).contains("is_root_device"));
    let missing =
        json!({"drive_id": "late", "path_on_host": "/no/such", "is_root_device": false}).to_string();
    assert!(vm.refused("PUT", "/drives/late", &missing).contains("No such file"));
    for nth in 1..31 {
        vm.put_drive(&format!("d{nth}"), &vm.path("disk"), &json!({"is_read_only": true}));
    }
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", vm.pid())).unwrap().count();
    let before = descriptors();
    let refusal = put("late", false);
    assert!(refusal.contains("every slot of the PCI bus is taken: 31"), "{refusal}");
    assert_eq!(descriptors(), before);
    assert_eq!(vm.get("/vm/config")["drives"].as_array().unwrap().len(), 31);
}

#[test]
fn an_idle_device_goes_without_the_guests_help_and_one_in_use_is_kept_and_works() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::start(Bus::Pci.flags());
    let large = zeros(&vm.path("large"), 5 << 30);
    vm.put_drive("used", &zeros(&vm.path("used"), 64 << 10), &json!({}));
    vm.put_drive("idle", &zeros(&vm.path("idle"), 4096), &json!({}));
    boot(&vm, "do=capacity");
    vm.prints("sectors 0x80\n");
    // Asked for at once by three: all are answered, and neither waits for the one that is kept.
    std::thread::scope(|scope| {
        let kept = scope.spawn(|| vm.refused("DELETE", "/drives/used", ""));
        let gone = [0, 1].map(|_| scope.spawn(|| vm.ask("DELETE", "/drives/idle", "")));
        gone.into_iter().for_each(|gone| assert_eq!(gone.join().unwrap().status, 204));
        assert!(!kept.is_finished());
        let kept = kept.join().unwrap();
        assert!(kept.contains("has not let go of device used within 10 s: it keeps it"), "{kept}");
    });
    assert_eq!(vm.get("/vm/config")["drives"].as_array().unwrap().len(), 1);
    vm.patch("/drives/used", &json!({"drive_id": "used", "path_on_host": large}));
    vm.prints("sectors 0xa00000\n");
}
