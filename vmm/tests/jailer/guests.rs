//! A microVM in the jail, with the guest that has no operating system.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::json;

use super::common::{checkout, eventually, http};
use super::{GID, Setup, UID, files, jails, skip};

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
        let setup = Setup::new().with(flags);
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
        assert!(jailed.output.whole().contains("bare-metal guest\ndone\n"), "{}", jailed.output.text());
        eventually("the janitor", || (files(jailed.base.path()) == before).then_some(()));
    }
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
