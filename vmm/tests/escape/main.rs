//! Running code in a VMM, what can be reached? Each kind of thread of a jailed process tries a battery of attacks; each must
//! be denied, and a neighbour that runs as the same user must not notice.
//!
//! The program is its own attacker: the jailer copies it into the jail in the VMM's place. So it has no test harness, and
//! prints as one does. What can't be run is skipped, loudly; with `$YUN_REQUIRE_JAIL` set to 1 it fails.
#![allow(clippy::unwrap_used)] // no function here is marked as a test
#![allow(unsafe_code)] // an attacker keeps to no rule

mod attacker;
mod attacks;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use vmm::sandbox::seccomp::rules::Kind;

use attacks::ATTACKS;

/// The user that attacker and neighbour both run as: only confinement stands between them.
const UID: &str = "47130";
const TAP: &str = "yunescape0";
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let Some(at) = words.iter().position(|word| word == "--attack-as") {
        match (words[at + 1].as_str(), attacker::parse(&words[at + 1..])) {
            ("int80", _) => attacker::int_80(),
            ("keys", _) => attacker::find_key(),
            (_, Some((kind, target))) => attacker::run(kind, target),
            (_, None) => eprintln!("what is to be attacked? {words:?}"),
        }
        return ExitCode::SUCCESS;
    }
    if let Err(why) = can_jail() {
        eprintln!("skipped: nothing can be jailed here ({why}); nothing was attacked");
        let required = std::env::var_os("YUN_REQUIRE_JAIL").is_some_and(|value| value == "1");
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    attacker::leave_key();
    let mut range = Range::new();
    let mut failed = 0;
    for kind in Kind::ALL {
        failed += usize::from(!range.holds(kind));
    }
    failed += usize::from(!range.ends_programs_of_32_bits());
    failed += usize::from(!range.keeps_the_operators_keys());
    println!("\n{} of {} attackers got somewhere", failed, Kind::ALL.len() + 2);
    ExitCode::from(u8::from(failed > 0))
}

fn can_jail() -> Result<(), String> {
    let script = "[ $(id -u) = 0 ] && d=$(mktemp -d) && trap 'rm -r \"$d\"' EXIT && mknod \"$d/n\" c 1 9 && unshare -muipnC -f true";
    let output = Command::new("sh").args(["-c", script]).output().map_err(|error| error.to_string())?;
    output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A neighbour with its TAP device and its API, and a secret.
struct Range {
    base: tempfile::TempDir,
    attacker: PathBuf,
    neighbour: Child,
    attackers: u32,
}

impl Range {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        fs::write(base.path().join("secret"), "of another tenant").unwrap();
        let open = Command::new("chmod").args(["-R", "a+rX"]).arg(base.path()).status();
        assert!(open.unwrap().success());
        let programs = base.path().join("programs");
        fs::create_dir(&programs).unwrap();
        let attacker = programs.join("attacker");
        let own = std::env::current_exe().unwrap();
        assert!(Command::new("strip").arg("-o").args([&attacker, &own]).status().unwrap().success());
        let _ = Command::new("ip").args(["tuntap", "add", TAP, "mode", "tap", "user", UID]).status();
        let vmm = Path::new(env!("CARGO_BIN_EXE_yun-vmm"));
        let neighbour = jailer(base.path(), vmm, "neighbour", &[]).stdout(Stdio::null()).spawn().unwrap();
        let range = Self { base, attacker, neighbour, attackers: 0 };
        let begin = Instant::now();
        while !range.neighbour_answers() {
            assert!(begin.elapsed() < PATIENCE, "the neighbour does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        range
    }

    fn socket(&self) -> PathBuf {
        self.base.path().join("yun-vmm/neighbour/root/run/firecracker.socket")
    }

    fn neighbour_answers(&self) -> bool {
        let Ok(mut stream) = std::os::unix::net::UnixStream::connect(self.socket()) else { return false };
        use std::io::{Read, Write};
        let mut answer = [0; 12];
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").is_ok()
            && stream.read_exact(&mut answer).is_ok()
            && &answer == b"HTTP/1.1 200"
    }

    /// Runs the attacker in a jail of its own, to its end.
    fn attack(&mut self, words: &[&str]) -> Output {
        self.attackers += 1;
        let id = format!("attacker-{}", self.attackers);
        let mut command = jailer(self.base.path(), &self.attacker, &id, words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let begin = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begin.elapsed() > PATIENCE {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait_with_output().unwrap()
    }

    /// Whether an attacker in a thread of `kind` gets nowhere.
    fn holds(&mut self, kind: Kind) -> bool {
        let pid = self.neighbour.id().to_string();
        let secret = self.base.path().join("secret").display().to_string();
        let socket = self.socket().display().to_string();
        let output = self.attack(&["--attack-as", &format!("{kind:?}"), &pid, &secret, &socket, TAP]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let wanted: BTreeSet<&str> = ATTACKS
            .iter()
            .filter(|attack| !attack.work_of.contains(&kind))
            .map(|attack| attack.name)
            .chain(["every_call_that_is_not_on_the_list"])
            .collect();
        let denied: BTreeSet<&str> =
            said.lines().filter_map(|line| line.split_once(": denied").map(|(name, _)| name)).collect();
        let intact = self.neighbour.try_wait().unwrap().is_none() && self.neighbour_answers();
        let holds = denied == wanted && said.ends_with("end\n") && output.status.success() && intact;
        println!(
            "test {kind:?} ... {} ({} attacks denied)",
            if holds { "ok" } else { "FAILED" },
            denied.len()
        );
        if !holds {
            for name in wanted.difference(&denied) {
                let line = said.lines().find(|line| line.starts_with(&format!("{name}:")));
                println!("  {}", line.unwrap_or(&format!("{name}: no answer")));
            }
            println!("  {}, {}", output.status, String::from_utf8_lossy(&output.stderr));
            println!("  the neighbour is {}", if intact { "as it was" } else { "NOT as it was" });
        }
        holds
    }

    /// Whether the old way into the kernel, which numbers calls otherwise, is closed.
    fn ends_programs_of_32_bits(&mut self) -> bool {
        let output = self.attack(&["--attack-as", "int80"]);
        let ended = output.status.signal() == Some(libc::SIGSYS) || output.status.code() == Some(148);
        println!("test int80 ... {}", if ended { "ok" } else { "FAILED" });
        if !ended {
            println!("  {}, {}", output.status, String::from_utf8_lossy(&output.stdout));
        }
        ended
    }

    /// Whether the keys of whoever starts the jailer stay theirs.
    fn keeps_the_operators_keys(&mut self) -> bool {
        let output = self.attack(&["--attack-as", "keys"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let kept = said.starts_with("denied: ");
        println!("test keys ... {}", if kept { "ok" } else { "FAILED" });
        if !kept {
            println!("  {}, {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        kept
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        let _ = self.neighbour.kill();
        let _ = self.neighbour.wait();
        let _ = Command::new("ip").args(["link", "del", TAP]).status();
    }
}

fn jailer(base: &Path, exec_file: &Path, id: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_yun-jailer"));
    command.args(["--id", id, "--exec-file"]).arg(exec_file).args(["--uid", UID, "--gid", UID]);
    command.arg("--chroot-base-dir").arg(base).arg("--new-netns").arg("--").args(words);
    command.stdin(Stdio::null());
    command
}
