//! `yun` as a process, against an agent that does what the test tells it over a real socket.
//!
//! | room | one idea |
//! |---|---|
//! | [`results`] | what is printed, in which format |
//! | [`failures`] | exit codes, error bodies, confirmation, an agent that is away |
//! | [`operations`] | waiting, progress, Ctrl-C |
//! | [`foreground`] | a VM whose life is the process's |
//! | [`manifests`] | `apply` and `create -f` |
//! | [`consoles`] | the terminal, and that it is given back |
//! | [`streams`] | events and logs that go on |
//! | [`shells`] | completion with live names, manual pages |

#![allow(clippy::unwrap_used)] // clippy takes only functions with #[test] for tests

mod consoles;
mod failures;
mod fake;
mod foreground;
mod manifests;
mod offline;
mod operations;
mod results;
mod shells;
mod streams;

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake::Fake;
use serde_json::Value;

/// How long anything may take that has no reason to take long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a `yun` said and ended with.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    /// Its stdout as JSON.
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A `yun` that asks this agent; nothing of the machine's settings is its.
fn yun(fake: &Fake, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_yun"));
    command.args(arguments).env("YUN_SOCKET", fake.socket()).env_remove("YUN_TENANT").env_remove("NO_COLOR");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end.
fn run(fake: &Fake, arguments: &[&str]) -> Said {
    ended(yun(fake, arguments).spawn().unwrap())
}

/// Runs it to its end, with this on its stdin.
fn run_with(fake: &Fake, arguments: &[&str], stdin: &str) -> Said {
    let mut child = yun(fake, arguments).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    ended(child)
}

fn ended(child: Child) -> Said {
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    // A yun that hangs fails its test, instead of hanging it.
    let (done, waits) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if waits.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    guard.join().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap_or_else(|| panic!("{:?}", output.status));
    Said { code, out: text(output.stdout), err: text(output.stderr) }
}

/// Asks `probe` until it answers.
fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Until this line was asked for `times` times.
fn asked(fake: &Fake, line: &str, times: usize) {
    eventually(&format!("{times} times {line}"), || {
        (fake.lines().iter().filter(|asked| asked.starts_with(line)).count() >= times).then_some(())
    });
}
