//! The VMM with Debian's kernel as its guest: runs where KVM runs Linux (`scripts/on-kvm` finds or makes such a place).
//!
//! | room | one idea |
//! |---|---|
//! | [`boots`] | ways into the kernel, vCPUs, memory, command line |
//! | [`ends`] | poweroff, reboot, panic, the power button, Ctrl-Alt-Del |
//! | [`disks`] | block devices and entropy, resizing, a root file system, pauses during I/O |
//! | [`integrity`] | fio's checksums, while the host changes all it can |
//! | [`nets`] | a network interface on a TAP device |
//! | [`vhost`] | a network interface that the host's kernel serves |
//! | [`hotplug`] | devices that come and go |
//! | [`sockets`] | the socket device: bulk, half-closed ends, records, a stalled reader, a storm |
//! | [`confinement`] | the lists of system calls, held against a microVM's life |
//!
//! A boot takes seconds where SVM is emulated, so tests of one room share one where the name still says what is claimed.
//! The guest runs a shell script under `set -e`: that it "ended with 0" means that each of its lines did what it says.

#![allow(clippy::unwrap_used)] // clippy takes only functions with #[test] for tests

#[path = "../common/mod.rs"]
mod common;

mod boots;
mod confinement;
mod disks;
mod ends;
mod hotplug;
mod integrity;
mod nets;
mod sockets;
mod vhost;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::json;

use common::{Vm, checkout, say};

/// Whether KVM runs Linux here. Else tests pass and say that they are skipped; if `$YUN_REQUIRE_LINUX` is 1 they fail.
fn linux() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| value == "1");
    if is_set("YUN_LINUX_KVM") {
        return true;
    }
    assert!(!is_set("YUN_REQUIRE_LINUX"), "YUN_REQUIRE_LINUX is set, but not YUN_LINUX_KVM");
    static SAID: OnceLock<()> = OnceLock::new();
    SAID.get_or_init(|| {
        say("skipped: no Linux was booted. Nobody says that this KVM can (YUN_LINUX_KVM=1); scripts/test runs these tests \
             where it can.");
    });
    false
}

/// A file of guest-images/out.
fn image(name: &str) -> PathBuf {
    let path = checkout().join("guest-images/out").join(name);
    assert!(path.exists(), "{} is missing: run guest-images/build", path.display());
    path
}

/// The vmlinux without its PVH entry point: the note that names it is made a header that nobody reads.
fn vmlinux_without_pvh() -> &'static Path {
    const PT_NOTE: u8 = 4;
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut bytes = fs::read(image("vmlinux")).unwrap();
        let field = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        // The ELF header's e_phoff (below 64 KiB here), e_phentsize and e_phnum; p_type comes first in each header.
        let (first, size, count) = (field(32), field(54), field(56));
        let notes = (0..count).map(|n| first + n * size).filter(|at| bytes[*at] == PT_NOTE);
        let notes: Vec<_> = notes.collect();
        assert_eq!(notes.len(), 1);
        notes.into_iter().for_each(|at| bytes[at] = 0);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vmlinux-without-pvh");
        fs::write(&path, bytes).unwrap();
        path
    })
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if digit > group.len() { '=' } else { char::from(DIGITS[value]) });
        }
    }
    text
}

/// The command line of a guest that runs `script`; `words` say the rest.
fn words(words: &str, script: &str) -> String {
    let script = base64(format!("set -e\n{script}").as_bytes());
    format!("console=ttyS0 quiet reboot=k panic=-1 {words} yun.run={script}")
}

/// Names the kernel (and the initrd) and what the guest is to do.
fn load(vm: &Vm, kernel: &Path, args: &str) {
    let initrd = image("initrd.img");
    vm.put("/boot-source", &json!({"kernel_image_path": kernel, "initrd_path": initrd, "boot_args": args}));
}

/// Starts the vmlinux with a script.
fn boot(vm: &Vm, more: &str, script: &str) {
    load(vm, &image("vmlinux"), &words(more, script));
    vm.act("InstanceStart");
}

/// Waits until the guest has run its script well and switched itself off.
fn succeeds(vm: &mut Vm) {
    vm.ends_with(0, "poweroff");
    assert!(vm.console().contains("yun-guest: command ended with 0\r\n"), "{}", vm.console());
}

/// What the guest printed after `key=` on a line of its own.
fn printed(vm: &Vm, key: &str) -> String {
    let console = vm.console();
    let line = console.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key}= in {console}")).trim().to_owned()
}

/// Runs a command of the host: what it printed.
fn host(line: &str) -> String {
    let output = Command::new("sh").arg("-c").arg(line).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// SHA-256 of a file of the host.
fn sha256(path: &Path) -> String {
    host(&format!("sha256sum <{}", path.display())).split(' ').next().unwrap().to_owned()
}
