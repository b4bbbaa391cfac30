//! The agent as a process, with jailed microVMs that have no operating system: needs root and /dev/kvm, and no network.
//!
//! | room | one idea |
//! |---|---|
//! | [`client`] | HTTP on the agent's socket: requests, streams, consoles, as any user |
//! | [`rig`] | a server with an agent on it, that dies and comes again |
//! | [`order`] | nothing half there, nothing left over, usage that adds up |
//! | [`faults`] | the agent is killed at each of its steps |
//! | [`vmms`] | a VMM that dies, hangs, or is not the one it seems |
//! | [`stores`] | a full disk, a damaged store, two agents |
//! | [`crowd`] | many clients, slow ones, dead ones |
//! | [`hostile`] | tenants and strangers who want more than is theirs |
//! | [`refusals`] | every refusal has a code, and names what was wrong |
//! | [`lives`] | what VMs, images, volumes, streams, ledgers and roles do |
//!
//! What can't be run here is skipped, loudly; with `$YUN_REQUIRE_JAIL` or `$YUN_REQUIRE_KVM` set to 1 it fails.

#![allow(clippy::unwrap_used)] // clippy takes only functions with #[test] for tests

#[path = "../common/mod.rs"]
mod common;

mod client;
mod crowd;
mod faults;
mod hostile;
mod lives;
mod order;
mod refusals;
mod rig;
mod stores;
mod vmms;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use nix::unistd::Uid;

use common::{checkout, say};

/// Says once per reason that tests are skipped; fails if they must not be.
fn skip(variable: &str, why: &str) -> bool {
    let required = std::env::var_os(variable).is_some_and(|value| value == "1");
    assert!(!required, "{variable} is set, and {why}");
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap().insert(variable.to_owned()) {
        say(&format!("skipped: {why}"));
    }
    false
}

/// Whether this machine lets an agent run microVMs. It is found out by trying.
fn ready() -> bool {
    static CAN: OnceLock<Result<(), (&str, String)>> = OnceLock::new();
    let can = CAN.get_or_init(|| {
        if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            return Err(("YUN_REQUIRE_KVM", format!("/dev/kvm can't be opened: {error}")));
        }
        if !Uid::effective().is_root() {
            return Err(("YUN_REQUIRE_JAIL", "this is not root".to_owned()));
        }
        let command =
            "d=$(mktemp -d) && trap 'rm -r \"$d\"' EXIT && mknod \"$d/n\" c 1 9 && unshare -muipnC -f true";
        let output = Command::new("sh").args(["-c", command]).output();
        let output = output.map_err(|error| ("YUN_REQUIRE_JAIL", error.to_string()))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(("YUN_REQUIRE_JAIL", said)) }
    });
    match can {
        Ok(()) => true,
        Err((variable, why)) => {
            skip(variable, &format!("no agent can run VMs here ({why}); none was started"))
        }
    }
}

/// The guest, built once per run of the tests.
fn guest() -> &'static Path {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST.get_or_init(|| {
        let elf = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent-bare-metal.elf");
        let built = Command::new(checkout().join("guest-images/bare-metal/build")).arg(&elf).status();
        assert!(built.unwrap().success(), "the bare-metal guest does not build");
        elf
    })
}

/// The VMM: as small as what is shipped, for it is copied into each jail.
fn vmm() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        // One for each VMM that was ever tested, and never replaced: tests may run twice at once.
        let metadata = fs::metadata(common::vmm()).unwrap();
        let (len, nanoseconds) = (metadata.len(), metadata.mtime_nsec());
        let dir = format!("agent/{len}-{}.{nanoseconds}", metadata.mtime());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(dir);
        let (file, part) = (dir.join("yun-vmm"), dir.join(format!("yun-vmm.{}", std::process::id())));
        if !file.exists() {
            fs::create_dir_all(&dir).unwrap();
            let stripped = Command::new("strip").arg("-o").arg(&part).arg(common::vmm()).status();
            assert!(stripped.unwrap().success(), "strip (of binutils) does not work");
            fs::rename(part, &file).unwrap();
        }
        file
    })
}

/// The jailer under test: `$YUN_JAILER` (an optimised one, say), or the one that was built along with the tests.
fn jailer() -> PathBuf {
    std::env::var_os("YUN_JAILER").map_or_else(|| env!("CARGO_BIN_EXE_yun-jailer").into(), PathBuf::from)
}
