//! The VMM as a process, with a guest that has no operating system: runs on any /dev/kvm, in milliseconds a test.
//!
//! | room | one idea |
//! |---|---|
//! | [`ends`] | how a guest ends, and how its process does |
//! | [`devices`] | memory, block and entropy devices, over both transports |
//! | [`durability`] | a log on a drive whose VMM is killed: engines, cache modes |
//! | [`console`] | the serial port: floods, files, input |
//! | [`start`] | what `InstanceStart` refuses, and that it can be tried again |
//! | [`api`] | the API while a guest runs: refusals, changes, metrics, crowds |
//! | [`interrupts`] | those that others than the VMM raise, without a guest |
//! | [`plug`] | devices that come and go, with a guest that knows nothing of that |
//! | [`process`] | signals, the socket, the command line and the configuration file |

#![allow(clippy::unwrap_used)] // clippy takes only functions with #[test] for tests

#[path = "../common/mod.rs"]
mod common;

mod api;
mod console;
mod devices;
mod durability;
mod ends;
mod interrupts;
mod plug;
mod process;
mod start;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::json;

use common::{Vm, checkout, say};

/// Whether there is a KVM. Without one, tests pass and say that they are skipped; if `$YUN_REQUIRE_KVM` is 1 they fail.
fn kvm() -> bool {
    let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") else {
        return true;
    };
    assert!(
        std::env::var_os("YUN_REQUIRE_KVM").is_none_or(|value| value != "1"),
        "YUN_REQUIRE_KVM is set, and /dev/kvm can't be opened: {error}"
    );
    static SAID: OnceLock<()> = OnceLock::new();
    SAID.get_or_init(|| say(&format!("skipped: no /dev/kvm ({error}); nothing was run on a guest")));
    false
}

/// The guest, built once per run of the tests.
fn guest() -> &'static Path {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST.get_or_init(|| {
        let elf = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bare-metal.elf");
        let built = Command::new(checkout().join("guest-images/bare-metal/build")).arg(&elf).status();
        assert!(built.unwrap().success(), "the bare-metal guest does not build");
        elf
    })
}

/// Names the guest, which will do what `words` say.
fn load(vm: &Vm, words: &str) {
    vm.put("/boot-source", &json!({ "kernel_image_path": guest(), "boot_args": words }));
}

/// Names the guest and starts it.
fn boot(vm: &Vm, words: &str) {
    load(vm, words);
    vm.act("InstanceStart");
}
