//! What the integration tests share: a running `yun-vmm` ([`Vm`]), a client of its API ([`http`]), and a limit on every wait.

#![allow(dead_code)] // each test binary uses its part
#![allow(clippy::unwrap_used)] // clippy takes only functions with #[test] for tests

pub mod http;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use http::{Reply, request};

/// How long anything may take that has no reason to take long. Generous: the machine may be busy, and emulated.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// How the guest finds its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// virtio-mmio.
    Mmio,
    /// virtio-pci with MSI-X.
    Pci,
}

impl Bus {
    /// What the VMM is told of it.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Bus::Mmio => &[],
            Bus::Pci => &["--enable-pci"],
        }
    }
}

/// Makes a test of each function, over each transport: `mmio::NAME` and `pci::NAME`. It is run if `$when` says so.
#[macro_export]
macro_rules! over_both_transports {
    ($when:ident: $($name:ident),* $(,)?) => {
        mod mmio { $(#[test] fn $name() { if super::$when() { super::$name(super::Bus::Mmio); } })* }
        mod pci { $(#[test] fn $name() { if super::$when() { super::$name(super::Bus::Pci); } })* }
    };
}

/// Says something that the test harness does not swallow.
pub fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// The top of the checkout.
pub fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The VMM under test: `$YUN_VMM` (an optimised one, say), or the one that was built along with the tests.
pub fn vmm() -> PathBuf {
    std::env::var_os("YUN_VMM").map_or_else(|| env!("CARGO_BIN_EXE_yun-vmm").into(), PathBuf::from)
}

/// Asks `probe` until it answers; panics with `what` if it does not in [`PATIENCE`].
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A process that does not outlive its owner.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What happens to the VMM's standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It is read as it comes.
    Read,
    /// It is a pipe that nobody reads.
    Ignored,
}

/// A VMM that is to be started.
pub struct Setup {
    command: Command,
    output: Output,
    dir: TempDir,
}

impl Setup {
    /// A VMM with an API, a log file, and a directory of its own.
    pub fn new(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(vmm());
        command.arg("--api-sock").arg(dir.path().join("api.sock"));
        command.arg("--log-path").arg(dir.path().join("log")).args(flags);
        Self { command, output: Output::Read, dir }
    }

    /// The same, with every system call of it written to the file `trace` (strace(1); flags as numbers).
    pub fn traced(flags: &[&str], trace: &Path) -> Self {
        let mut setup = Self::new(flags);
        let vmm = std::mem::replace(&mut setup.command, Command::new("strace"));
        setup.command.args(["-f", "-qq", "-X", "raw", "-s", "16", "-o"]).arg(trace);
        setup.command.arg(vmm.get_program()).args(vmm.get_args());
        setup
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The command, for what else it needs.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Nobody reads what it prints.
    pub fn with_output_ignored(mut self) -> Self {
        self.output = Output::Ignored;
        self
    }

    /// Starts it, and waits until its API answers.
    pub fn start(self) -> Vm {
        self.start_when(|socket| socket.exists())
    }

    /// The same where an old socket is in the way.
    pub fn start_over_stale(self) -> Vm {
        self.start_when(|socket| UnixStream::connect(socket).is_ok())
    }

    fn start_when(mut self, ready: impl Fn(&Path) -> bool) -> Vm {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("yun-vmm starts");
        let stderr = Captured::of(child.stderr.take().unwrap());
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().unwrap();
        let (console, unread) = match self.output {
            Output::Read => (Captured::of(stdout), None),
            Output::Ignored => (Captured::default(), Some(stdout)),
        };
        let mut vm = Vm {
            child: Guard(child),
            console,
            stderr,
            stdin,
            unread,
            dir: self.dir,
            events: Captured::default(),
        };
        eventually("the API's socket", || {
            if let Some(status) = vm.child.0.try_wait().unwrap() {
                panic!("ended with {status} instead of starting: {}", vm.stderr.text());
            }
            ready(&vm.socket()).then_some(())
        });
        vm.events = Captured::of(http::follow(&vm.socket(), "/events").unwrap());
        vm
    }
}

/// Bytes that are collected as they come.
#[derive(Clone, Default)]
pub struct Captured(Arc<Mutex<(Vec<u8>, bool)>>);

impl Captured {
    /// Collects what `source` gives until its end.
    pub fn of(source: impl Read + Send + 'static) -> Self {
        let captured = Self::default();
        let ours = captured.clone();
        thread::spawn(move || ours.fill_from(source));
        captured
    }

    fn fill_from(&self, mut source: impl Read) {
        let mut bytes = [0; 4096];
        loop {
            let n = source.read(&mut bytes).unwrap_or(0);
            let mut inner = self.0.lock().unwrap();
            if n == 0 {
                inner.1 = true;
                return;
            }
            inner.0.extend(&bytes[..n]);
        }
    }

    /// What has come so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap().0).into_owned()
    }

    /// Everything, once there is no more to come.
    pub fn whole(&self) -> String {
        eventually("the end of the output", || self.0.lock().unwrap().1.then_some(()));
        self.text()
    }
}

/// A running VMM; killed when dropped.
pub struct Vm {
    child: Guard,
    console: Captured,
    stderr: Captured,
    stdin: Option<ChildStdin>,
    unread: Option<std::process::ChildStdout>,
    dir: TempDir,
    events: Captured,
}

impl Vm {
    /// A VMM with an API and nothing configured.
    pub fn start(flags: &[&str]) -> Self {
        Setup::new(flags).start()
    }

    /// Its API's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    /// A path in its own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Asks its API.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        request(&self.socket(), method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
    }

    /// The JSON that a resource shows.
    pub fn get(&self, path: &str) -> Value {
        let reply = self.ask("GET", path, "");
        assert_eq!(reply.status, 200, "GET {path}: {}", reply.body);
        serde_json::from_str(&reply.body).unwrap()
    }

    /// A request that is carried out.
    pub fn put(&self, path: &str, body: &Value) {
        self.accepted("PUT", path, body);
    }

    /// A change that is carried out.
    pub fn patch(&self, path: &str, body: &Value) {
        self.accepted("PATCH", path, body);
    }

    fn accepted(&self, method: &str, path: &str, body: &Value) {
        let reply = self.ask(method, path, &body.to_string());
        assert_eq!((reply.status, reply.body.as_str()), (204, ""), "{method} {path} {body}\n{}", self.log());
    }

    /// A request that is refused; why.
    pub fn refused(&self, method: &str, path: &str, body: &str) -> String {
        let reply = self.ask(method, path, body);
        assert_eq!(reply.status, 400, "{method} {path} {body}: {}", reply.body);
        let fault: Value = serde_json::from_str(&reply.body).unwrap();
        fault["fault_message"].as_str().unwrap_or_else(|| panic!("no fault in {fault}")).to_owned()
    }

    /// `PUT /actions`.
    pub fn act(&self, action: &str) {
        self.put("/actions", &json!({ "action_type": action }));
    }

    /// `PUT /actions InstanceStart` that is refused; why.
    pub fn start_refused(&self) -> String {
        self.refused("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#)
    }

    /// Adds a drive.
    pub fn put_drive(&self, id: &str, path: &Path, more: &Value) {
        let mut body = json!({
            "drive_id": id, "path_on_host": path, "is_root_device": false, "is_read_only": false,
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.put(&format!("/drives/{id}"), &body);
    }

    /// What the guest has printed.
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// Waits until the guest has printed `text`.
    pub fn prints(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.console().contains(text) {
            let ended = self.child.0.try_wait().unwrap();
            if (ended.is_some() && !self.console.whole().contains(text)) || Instant::now() > deadline {
                panic!("the guest did not print {text:?} ({ended:?})\n{}", self.state());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes to its standard input.
    pub fn types(&mut self, text: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(text).unwrap();
    }

    /// Closes its standard input.
    pub fn hangs_up(&mut self) {
        self.stdin = None;
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default() + &self.stderr.text()
    }

    /// Waits until it has logged `text`.
    pub fn logs(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || self.log().contains(text).then_some(()));
    }

    /// The events so far.
    pub fn events(&self) -> Vec<Value> {
        // The stream is cut into chunks, whose lengths stand on lines of their own.
        let text = self.events.text();
        text.lines().filter(|l| l.starts_with('{')).map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Waits for an event of this kind.
    pub fn happens(&self, kind: &str) {
        eventually(&format!("event {kind}"), || {
            self.events().iter().any(|e| e["event"] == kind).then_some(())
        });
    }

    /// One number of `GET /metrics`, such as `yun_uart_write_count_total`.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.ask("GET", "/metrics", "").body;
        let line = text.lines().find(|l| l.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// A signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Processor time that its threads of this name have had, in clock ticks.
    pub fn ticks(&self, thread: &str) -> u64 {
        let mut ticks = 0;
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()));
        for task in tasks.into_iter().flatten().flatten() {
            let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
            // "pid (name) state ppid ...": user and system time are the 14th and 15th field (proc(5)).
            let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(')').unwrap();
            if name.starts_with(thread) {
                let times = rest.split_whitespace().skip(11).take(2);
                ticks += times.map(|field| field.parse::<u64>().unwrap()).sum::<u64>();
            }
        }
        ticks
    }

    /// What a failed wait has to show: console, log, and what each thread does. A vCPU that sleeps has halted, and no
    /// interrupt woke it.
    fn state(&self) -> String {
        let mut text = format!("{}\n{}", self.console(), self.log());
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()));
        for task in tasks.into_iter().flatten().flatten() {
            let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let (name, wchan) = (read("comm"), read("wchan"));
            let state = read("stat").rsplit(") ").next().and_then(|rest| rest.chars().next());
            let ticks = self.ticks(name.trim());
            thread::sleep(Duration::from_millis(200));
            let ran = self.ticks(name.trim()).saturating_sub(ticks);
            text += &format!("{}: {state:?} in {wchan:?}, {ran} ticks in 200 ms\n", name.trim());
        }
        text
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Whether it is still there.
    pub fn runs(&mut self) -> bool {
        self.child.0.try_wait().unwrap().is_none()
    }

    /// Waits for its end: the status.
    pub fn ends(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.0.try_wait().unwrap() {
                return status.code().unwrap_or_else(|| panic!("{status}\n{}", self.log()));
            }
            if Instant::now() > deadline {
                panic!("no end after {PATIENCE:?}\n{}", self.state());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end, which has this status and, in the log and as the last event, this reason.
    pub fn ends_with(&mut self, status: i32, reason: &str) {
        assert_eq!(self.ends(), status, "{}\n{}", self.console(), self.log());
        self.events.whole();
        if self.unread.is_none() {
            self.console.whole(); // what it printed last may still be on its way to us
        }
        let events = self.events();
        let last = events.last().unwrap_or_else(|| panic!("no events\n{}", self.log()));
        assert_eq!((last["event"].as_str(), last["reason"].as_str()), (Some("shutdown"), Some(reason)));
        let line = format!("(reason {reason}, exit status {status})");
        assert!(self.log().contains(&line), "no {line:?} in the log:\n{}", self.log());
        assert!(!self.socket().exists(), "the socket is left behind");
    }
}

/// A file of `bytes` zeros.
pub fn zeros(path: &Path, bytes: u64) -> PathBuf {
    fs::File::create(path).unwrap().set_len(bytes).unwrap();
    path.to_owned()
}

/// Runs a VMM that ends by itself: its status and what it said.
pub fn run(args: &[&str]) -> (i32, String) {
    let mut command = Command::new(vmm());
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("yun-vmm starts");
    let (out, err) = (Captured::of(child.stdout.take().unwrap()), Captured::of(child.stderr.take().unwrap()));
    let mut child = Guard(child);
    let status = eventually("the end of the VMM", || child.0.try_wait().unwrap());
    (status.code().unwrap_or(-1), out.whole() + &err.whole())
}

/// A file that only its owner may use is what sockets and logs are.
pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}
