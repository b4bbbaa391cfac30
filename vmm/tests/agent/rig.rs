//! A server with an agent on it: a directory that outlives the agent's deaths, and everything in it when it is dropped.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{self, Reply, User};
use super::common::eventually;

/// The agent is dead, or died over a request.
#[derive(Debug)]
pub struct Died;

/// Directory, and the agent if there is one.
pub struct Host {
    /// What is mounted over a part of it: goes when no process of the server is left, and before the directory.
    mounted: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    dir: TempDir,
    flags: Vec<String>,
    agent: Mutex<Option<Child>>,
    /// Ids of all VMs that were ever seen.
    ids: Mutex<BTreeSet<String>>,
}

/// The path of a VM.
pub fn vm_path(tenant: &str, vm: &str) -> String {
    format!("/v1/tenants/{tenant}/vms/{vm}")
}

/// A VM that does what `words` say.
pub fn spec(words: &str) -> Value {
    json!({ "image": "guest", "memory_mib": 32, "kernel_args": words, "stop_timeout_seconds": 1 })
}

/// The same, with more fields.
pub fn spec_with(words: &str, more: &Value) -> Value {
    let mut spec = spec(words);
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

impl Host {
    /// A server with an agent, the image `guest` and the tenant `t`.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same, with these flags of the agent's.
    pub fn with(flags: &[&str]) -> Self {
        let host = Self::bare(flags);
        host.start();
        host.furnish();
        host
    }

    /// A server without an agent.
    pub fn bare(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Others may ask too.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Self { mounted: Mutex::default(), dir, flags, agent: Mutex::new(None), ids: Mutex::default() }
    }

    /// Takes the image in, and makes the tenant.
    pub fn furnish(&self) {
        self.done("POST", "/v1/images", &json!({ "name": "guest", "kernel": super::guest() }));
        self.put("/v1/tenants/t", &json!({}));
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Keeps a mount for as long as there are processes.
    pub fn mounts(&self, mount: impl std::any::Any + Send) {
        *self.mounted.lock().unwrap() = Some(Box::new(mount));
    }

    /// What the agent keeps.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("yund.sock")
    }

    /// What agents have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// An agent's command.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_yund"));
        command.arg("--socket").arg(self.socket()).arg("--state-dir").arg(self.state_dir());
        command.arg("--vmm").arg(super::vmm());
        if !self.flags.iter().any(|flag| flag == "--jailer") {
            command.arg("--jailer").arg(super::jailer());
        }
        command.args(["--no-network", "--usage-interval", "1", "--reserve-disk-mib", "0"]).args(&self.flags);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts an agent, and waits until it answers.
    pub fn start(&self) {
        self.start_to_die_at(None);
    }

    /// Starts an agent that ends itself at a step.
    pub fn start_to_die_at(&self, step: Option<&str>) {
        let mut command = self.command();
        command.envs(step.map(|step| ("YUND_DIE_AT", step)));
        self.launch(command);
        let answers = || {
            let ended = self.agent.lock().unwrap().as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            self.whoami().then_some(())
        };
        eventually("the agent's answer", answers);
    }

    /// Starts an agent by a command.
    pub fn launch(&self, mut command: Command) {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.dir.path().join("log")).unwrap();
        let before = self.agent.lock().unwrap().replace(command.stderr(log).spawn().unwrap());
        assert!(before.is_none(), "there is an agent");
    }

    fn whoami(&self) -> bool {
        client::request(&self.socket(), "GET", "/v1/whoami", "").is_ok_and(|reply| reply.status == 200)
    }

    /// The agent's process.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.agent.lock().unwrap().as_ref().unwrap().id()).unwrap()
    }

    /// Sends the agent a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for the agent's end.
    pub fn ends(&self) -> ExitStatus {
        let mut agent = self.agent.lock().unwrap().take().unwrap();
        eventually("the agent's end", || agent.try_wait().unwrap())
    }

    /// The agent's status, if it has ended.
    pub fn has_ended(&self) -> Option<ExitStatus> {
        let mut agent = self.agent.lock().unwrap();
        let status = agent.as_mut().unwrap().try_wait().unwrap();
        if status.is_some() {
            *agent = None;
        }
        status
    }

    /// Waits until nobody has the store open.
    pub fn store_is_closed(&self) {
        let file = fs::File::open(self.state_dir().join("yund.redb")).unwrap();
        eventually("the store's end", || file.try_lock().ok());
    }

    /// Kills the agent.
    pub fn kill9(&self) {
        self.signal(Signal::SIGKILL);
        self.ends();
    }

    /// Ends the agent in good order.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
        let status = self.ends();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Asks, if there is an agent that answers.
    pub fn attempt(&self, method: &str, path: &str, body: &Value) -> Result<Reply, Died> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        client::request(&self.socket(), method, path, &body).map_err(|_| Died)
    }

    /// Asks.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> Reply {
        self.attempt(method, path, body).unwrap_or_else(|_| panic!("{method} {path}: no answer"))
    }

    /// Asks as somebody.
    pub fn ask_as(&self, user: User, method: &str, path: &str, body: &Value) -> Reply {
        user.does(|| self.ask(method, path, body))
    }

    /// What a resource shows.
    pub fn get(&self, path: &str) -> Value {
        let reply = self.ask("GET", path, &Value::Null);
        assert_eq!(reply.status, 200, "GET {path}: {}", reply.text());
        reply.json()
    }

    /// A change that is made at once.
    pub fn put(&self, path: &str, body: &Value) -> Value {
        let reply = self.ask("PUT", path, body);
        assert!(matches!(reply.status, 200 | 201), "PUT {path} {body}: {} {}", reply.status, reply.text());
        reply.json()
    }

    /// A removal that is made at once.
    pub fn delete(&self, path: &str) {
        let reply = self.ask("DELETE", path, &Value::Null);
        assert_eq!(reply.status, 204, "DELETE {path}: {}", reply.text());
    }

    /// A request that is refused: status, code and words.
    pub fn refused(&self, method: &str, path: &str, body: &Value) -> (u16, String, String) {
        let reply = self.ask(method, path, body);
        let (code, message) = reply.refusal();
        (reply.status, code, message)
    }

    /// Begins an operation: its id.
    pub fn begin(&self, method: &str, path: &str, body: &Value) -> String {
        let reply = self.ask(method, path, body);
        assert_eq!(reply.status, 202, "{method} {path} {body}: {}", reply.text());
        reply.json()["id"].as_str().unwrap().to_owned()
    }

    /// Waits for an operation's end.
    pub fn over(&self, op: &str) -> Value {
        let path = format!("/v1/operations/{op}/wait?timeout_seconds=120");
        let view = self.get(&path);
        assert_ne!(view["state"], "running", "{view}\n{}", self.log());
        view
    }

    /// An operation that succeeds.
    pub fn done(&self, method: &str, path: &str, body: &Value) -> Value {
        let view = self.over(&self.begin(method, path, body));
        assert_eq!(view["state"], "succeeded", "{method} {path} {body}: {view}\n{}", self.log());
        view
    }

    /// Makes a VM of tenant `t`, and waits until it runs.
    pub fn run(&self, vm: &str, spec: &Value) -> Value {
        self.put(&vm_path("t", vm), &json!({ "spec": spec }));
        self.becomes(vm, "running")
    }

    /// A VM of tenant `t`.
    pub fn vm(&self, vm: &str) -> Value {
        let view = self.get(&vm_path("t", vm));
        self.ids.lock().unwrap().insert(view["id"].as_str().unwrap().to_owned());
        view
    }

    /// Waits until a VM of tenant `t` is in this state, for no other reason than that it is wanted so.
    pub fn becomes(&self, vm: &str, state: &str) -> Value {
        self.vm_once(vm, state, |view| view["status"]["state"] == state)
    }

    /// Waits until a VM of tenant `t` is `what`.
    pub fn vm_once(&self, vm: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let mut probe = || {
            last = self.vm(vm);
            is(&last).then(|| last.clone())
        };
        let deadline = std::time::Instant::now() + super::common::PATIENCE;
        loop {
            if let Some(view) = probe() {
                return view;
            }
            assert!(std::time::Instant::now() < deadline, "{vm} is not {what}: {}\n{}", last, self.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Has something done with a VM of tenant `t`, and waits until it is.
    pub fn act(&self, vm: &str, action: &str) {
        self.done("POST", &format!("{}/actions", vm_path("t", vm)), &json!({ "action": action }));
    }

    /// The process of a VM of tenant `t`.
    pub fn vm_pid(&self, vm: &str) -> i32 {
        i32::try_from(self.vm(vm)["status"]["pid"].as_i64().unwrap()).unwrap()
    }

    /// What the VMM of a VM of tenant `t` says of its drives.
    pub fn drives(&self, vm: &str) -> Vec<Value> {
        self.drives_at(&vm_path("t", vm))
    }

    /// The same of the VM at a path.
    pub fn drives_at(&self, path: &str) -> Vec<Value> {
        let vm = self.get(path);
        let name = format!("{}-{}", vm["id"].as_str().unwrap(), vm["status"]["incarnation"]);
        let socket = self.state_dir().join("jails/yun-vmm").join(name).join("root/run/firecracker.socket");
        let reply = client::request(&socket, "GET", "/vm/config", "").unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["drives"].as_array().unwrap().clone()
    }

    /// What the guest of a VM of tenant `t` has printed.
    pub fn console(&self, vm: &str) -> String {
        self.ask("GET", &format!("{}/logs?source=console", vm_path("t", vm)), &Value::Null).text()
    }

    /// Waits until that guest has printed something.
    pub fn prints(&self, vm: &str, text: &str) {
        let what = format!("{text:?} on the console of {vm}");
        eventually(&what, || self.console(vm).contains(text).then_some(()));
    }

    /// All events.
    pub fn events(&self) -> Vec<Value> {
        let reply = self.ask("GET", "/v1/events", &Value::Null);
        assert_eq!(reply.status, 200);
        reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Ids of VMs that were ever seen.
    pub fn ids(&self) -> BTreeSet<String> {
        self.ids.lock().unwrap().clone()
    }

    /// Processes that belong to this server, besides the agent and janitors: VMMs, and jailers at work.
    pub fn processes(&self) -> BTreeSet<i32> {
        self.all().into_iter().filter(|pid| !is_janitor(pid)).collect()
    }

    /// How many janitors wait for the end of a VMM.
    pub fn janitors(&self) -> usize {
        self.all().iter().filter(|pid| is_janitor(pid)).count()
    }

    /// Every process of this server, besides the agent.
    fn all(&self) -> BTreeSet<i32> {
        let agent = self.agent.lock().unwrap().as_ref().map(Child::id);
        let ours = self.dir.path().to_str().unwrap().as_bytes();
        let named = |bytes: &[u8]| bytes.windows(ours.len()).any(|window| window == ours);
        let is_ours = |proc: &Path| {
            let streams = (0..3).filter_map(|fd| fs::read_link(proc.join(format!("fd/{fd}"))).ok());
            fs::read(proc.join("cmdline")).is_ok_and(|bytes| named(&bytes))
                || streams.into_iter().any(|path| named(path.as_os_str().as_encoded_bytes()))
        };
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if i32::try_from(std::process::id()) != Ok(pid)
                && agent.is_none_or(|agent| i32::try_from(agent) != Ok(pid))
                && is_ours(&entry.path())
            {
                found.insert(pid);
            }
        }
        found
    }
}

fn is_janitor(pid: &i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "yun-janitor")
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            super::common::say(&format!("the agent's log ends with:\n{}", tail.join("\n")));
        }
        if let Some(mut agent) = self.agent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        // Processes that were about to be made may come meanwhile.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !self.all().is_empty() && std::time::Instant::now() < deadline {
            for pid in self.processes() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
