//! Real traffic between network namespaces that play the host, the domestic and the foreign Internet. A test is the guests: it
//! reads and writes the frames of their TAP devices.
//!
//! Every test has namespaces of its own, so they may run at once, and the machine's network is never touched. Needs root,
//! `nft` and `ip`. What can't be run here is skipped, loudly; with `$YUN_REQUIRE_EGRESS` set to 1 it fails.
//!
//! | room | one idea |
//! |---|---|
//! | [`world`] | the namespaces, the servers in them, and what arrived |
//! | [`frames`] | Ethernet frames, written and read |
//! | [`reach`] | who reaches whom, by class and family |
//! | [`spoof`] | guests that say that they are somebody else |
//! | [`change`] | classes and lists that change under running flows |
//! | [`lifetime`] | plugging, unplugging, restarts, leftovers |
//! | [`scale`] | 10,000 prefixes, 1,000 interfaces |

#![allow(clippy::unwrap_used)] // clippy takes only functions with #[test] for tests

mod change;
mod frames;
mod lifetime;
mod reach;
mod scale;
mod spoof;
mod world;

use std::io::Write;
use std::process::Command;
use std::sync::{OnceLock, PoisonError, RwLock};

use nix::sched::{CloneFlags, unshare};

/// Says something that the test harness does not swallow.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Whether this machine lets us play. It is found out by trying.
fn plays() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let attempt = "ip link set lo up && nft add table inet x && ip tuntap add dev t0 mode tap";
        let output = Command::new("unshare").args(["-n", "sh", "-c", attempt]).output();
        let why = match output {
            Ok(output) if output.status.success() => return true,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        let why = format!("no network namespaces with TAPs and nftables here ({why}); no traffic was sent");
        assert!(
            std::env::var_os("YUN_REQUIRE_EGRESS").is_none_or(|v| v != "1"),
            "YUN_REQUIRE_EGRESS is set, and {why}"
        );
        say(&format!("skipped: {why}"));
        false
    })
}

/// Tests that measure have the others wait.
static AT_ONCE: RwLock<()> = RwLock::new(());

/// Runs a test on a thread, and so in a network namespace, of its own.
fn play(test: impl FnOnce() + Send + 'static) {
    let _others = AT_ONCE.read().unwrap_or_else(PoisonError::into_inner);
    play_now(test);
}

/// The same, while no other test is run.
fn play_alone(test: impl FnOnce() + Send + 'static) {
    let _none = AT_ONCE.write().unwrap_or_else(PoisonError::into_inner);
    play_now(test);
}

fn play_now(test: impl FnOnce() + Send + 'static) {
    let played = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    };
    if plays()
        && let Err(panic) = std::thread::spawn(played).join()
    {
        std::panic::resume_unwind(panic);
    }
}
