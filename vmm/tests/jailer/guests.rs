//! A microVM in the jail, with the guest that has no operating system.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;

use super::common::{checkout, eventually, http};
use super::{GID, Jailed, Setup, UID, files, jails, skip};

fn kvm() -> bool {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => skip(
            "YUN_REQUIRE_KVM",
            &format!("/dev/kvm can't be opened ({error}); no guest was run in a jail"),
        ),
    }
}

#[test]
fn a_guest_boots_from_a_kernel_in_the_jail_prints_and_switches_itself_off() {
    if !jails() || !kvm() {
        return;
    }
    for flags in [&[][..], &["--new-user-ns", "--new-netns"]] {
        // The log elsewhere: the guest prints a byte at a time, and the log's lines may come between them.
        let setup = Setup::new().with(flags).handing_on(&["--log-path", "fd:2"]);
        fs::create_dir_all(setup.root()).unwrap();
        let kernel = setup.root().join("guest.elf");
        let built = Command::new(checkout().join("guest-images/bare-metal/build")).arg(&kernel).status();
        assert!(built.unwrap().success(), "the bare-metal guest does not build");
        chown(&kernel, Some(UID), Some(GID)).unwrap();
        let before = files(setup.base.path());
        let mut jailed = setup.start();
        let put = |path: &str, body: serde_json::Value| {
            let reply = http::request(&jailed.socket(), "PUT", path, &body.to_string()).unwrap();
            assert_eq!(reply.status, 204, "{path}: {}", reply.body);
        };
        put("/boot-source", json!({"kernel_image_path": "/guest.elf", "boot_args": "do=hello"}));
        put("/entropy", json!({}));
        put("/actions", json!({"action_type": "InstanceStart"}));
        assert_eq!(jailed.ends().code(), Some(0), "{}", jailed.output.whole());
        let output = jailed.output.whole();
        assert!(output.contains("bare-metal guest\n") && output.contains("done\n"), "{output}");
        eventually("the janitor", || (files(jailed.base.path()) == before).then_some(()));
    }
}

#[test]
fn an_interface_of_the_hosts_kernel_needs_a_node_that_is_there_if_the_jailer_is_told() {
    if !jails() {
        return;
    }
    let body = json!({"iface_id": "eth0", "host_dev_name": "yun-jailed", "vhost": true}).to_string();
    let put =
        |jailed: &Jailed| http::request(&jailed.socket(), "PUT", "/network-interfaces/eth0", &body).unwrap();
    let jailed = Setup::new().start();
    let reply = put(&jailed);
    let missing = "/dev/vhost-net can't be opened: No such file or directory (os error 2)";
    assert!(reply.status == 400 && reply.body.contains(missing), "{}", reply.body);
    assert!(reply.body.contains("yun-jailer the flag --vhost-net"), "{}", reply.body);
    drop(jailed);

    let jailed = Setup::new().with(&["--vhost-net"]).start();
    if !Path::new("/dev/vhost-net").exists() {
        // A node without a driver.
        let reply = put(&jailed);
        assert!(
            reply.status == 400 && reply.body.contains("/dev/vhost-net can't be opened"),
            "{}",
            reply.body
        );
        skip("YUN_REQUIRE_VHOST", "this host has no /dev/vhost-net; no interface was given to its kernel");
        return;
    }
    let ip = |words: &str| Command::new("ip").args(words.split(' ')).status().unwrap().success();
    assert!(ip(&format!("tuntap add yun-jailed mode tap user {UID}")));
    let reply = put(&jailed);
    assert!(ip("link del yun-jailed"));
    assert_eq!(reply.status, 204, "{}", reply.body);
}

#[test]
fn a_file_outside_the_jail_is_not_there_for_its_vmm() {
    if !jails() {
        return;
    }
    let jailed = Setup::new().start();
    for path in ["/etc/passwd", "/../../../../etc/passwd", "/proc/1/root/etc/passwd"] {
        assert!(path.starts_with("/proc") || Path::new(path).exists());
        let body =
            json!({"drive_id": "d", "path_on_host": path, "is_root_device": false, "is_read_only": true})
                .to_string();
        let reply = http::request(&jailed.socket(), "PUT", "/drives/d", &body).unwrap();
        assert!(
            reply.status == 400 && reply.body.contains("No such file or directory"),
            "{path}: {}",
            reply.body
        );
    }
    jailed.signal(Signal::SIGTERM);
}

/// What a request with open files is answered.
fn handed_over(
    jailed: &Jailed,
    method: &str,
    path: &str,
    body: &serde_json::Value,
    open: &[&fs::File],
) -> http::Reply {
    let descriptors: Vec<_> = open.iter().map(AsFd::as_fd).collect();
    http::request_with(&jailed.socket(), method, path, &body.to_string(), &descriptors).unwrap()
}

#[test]
fn a_guest_whose_files_are_all_handed_over_needs_none_in_its_jail_and_gets_another_image_the_same_way() {
    if !jails() || !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("guest.elf");
    let built = Command::new(checkout().join("guest-images/bare-metal/build")).arg(&kernel).status();
    assert!(built.unwrap().success(), "the bare-metal guest does not build");
    let image = |name: &str, bytes: u64| {
        let path = super::common::zeros(&dir.path().join(name), bytes);
        fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
    };
    let (small, large, kernel) =
        (image("small", 64 << 10), image("large", 1 << 20), fs::File::open(&kernel).unwrap());
    let mut jailed = Setup::new().with(&["--new-netns"]).start();
    let done = |method: &str, path: &str, body: serde_json::Value, open: &[&fs::File]| {
        let reply = handed_over(&jailed, method, path, &body, open);
        assert_eq!(reply.status, 204, "{path}: {}", reply.body);
    };
    // One that nobody asks for comes along and is closed.
    let boot = json!({"kernel_image_path": "received:1", "boot_args": "do=capacity"});
    done("PUT", "/boot-source", boot, &[&small, &kernel]);
    let drive = |path: &str| json!({"drive_id": "d", "path_on_host": path, "is_root_device": false});
    done("PUT", "/drives/d", drive("received:0"), &[&small]);
    done("PUT", "/actions", json!({"action_type": "InstanceStart"}), &[]);
    eventually("the small image", || jailed.output.text().contains("sectors 0x80\n").then_some(()));
    done("PATCH", "/drives/d", json!({"drive_id": "d", "path_on_host": "received:0"}), &[&large]);
    eventually("the large image", || jailed.output.text().contains("sectors 0x800\n").then_some(()));
    jailed.signal(Signal::SIGKILL);
    jailed.ends();
    jailed.vanishes();
}

#[test]
fn what_is_handed_over_must_be_there_and_open_for_what_it_is_used_for() {
    if !jails() {
        return;
    }
    let jailed = Setup::new().start();
    let dir = tempfile::tempdir().unwrap();
    let path = super::common::zeros(&dir.path().join("image"), 1 << 20);
    let (reading, directory) = (fs::File::open(&path).unwrap(), fs::File::open(dir.path()).unwrap());
    let drive = |path: &str| json!({"drive_id": "d", "path_on_host": path, "is_root_device": false});
    let tap = json!({"iface_id": "e", "host_dev_name": "received:0"});
    for (path, body, open, said) in [
        ("/drives/d", drive("received:0"), &[][..], "this request brought 0 descriptors"),
        ("/drives/d", drive("received:1"), &[&reading][..], "this request brought 1 descriptors"),
        ("/drives/d", drive("received:0"), &[&reading], "it is not open for reading and writing"),
        ("/drives/d", drive("fd:99"), &[], "Bad file descriptor"),
        ("/boot-source", json!({"kernel_image_path": "received:0"}), &[&directory], "Is a directory"),
        ("/network-interfaces/e", tap, &[&reading], "not a TAP device"),
    ] {
        let reply = handed_over(&jailed, "PUT", path, &body, open);
        assert!(reply.status == 400 && reply.body.contains(said), "{body}: {}", reply.body);
    }
    // A crowd of them is no way to make the VMM run out of descriptors.
    let crowd = vec![&reading; 200];
    for _ in 0..20 {
        let reply = handed_over(&jailed, "PUT", "/drives/d", &drive("received:0"), &crowd);
        assert!(reply.status == 400 && reply.body.contains("may bring 16 descriptors"), "{}", reply.body);
    }
    let open = fs::read_dir(jailed.proc("fd")).unwrap().count();
    assert!(open < 40, "{open} descriptors are open");
    jailed.signal(Signal::SIGTERM);
}
