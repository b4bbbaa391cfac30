//! The terminal, and that it is given back.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use hyper::body::Bytes;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::fake::{Fake, Reply, operation, refusal, vm};
use super::{PATIENCE, ended, eventually, run, yun};

const PATH: &str = "GET /v1/tenants/acme/vms/web/console";

/// A guest's end of a console.
struct Guest {
    says: UnboundedSender<Bytes>,
    hears: Receiver<Vec<u8>>,
}

impl Guest {
    fn hears(&self, expected: &[u8]) {
        let mut heard = Vec::new();
        while heard.len() < expected.len() {
            heard.extend(self.hears.recv_timeout(PATIENCE).unwrap());
        }
        assert_eq!(heard, expected);
    }
}

/// One console for whoever asks first.
fn guest(fake: &Fake) -> Guest {
    let (says, to_user) = unbounded_channel();
    let (from_user, hears) = channel();
    let mut reply = Some(Reply::Console(to_user, from_user));
    fake.on(PATH, move |_| reply.take().unwrap());
    Guest { says, hears }
}

/// A terminal with a `yun` on it.
struct Terminal {
    keys: File,
    end: OwnedFd,
    before: Termios,
    shown: Arc<Mutex<String>>,
    child: Option<Child>,
}

impl Terminal {
    fn with(fake: &Fake, arguments: &[&str]) -> Self {
        Self::having(fake, arguments, &[])
    }

    /// With this in its environment.
    fn having(fake: &Fake, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let pty = openpty(None, None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let before = tcgetattr(pty.slave.as_fd()).unwrap();
        let mut command = yun(fake, arguments);
        let child = command
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .env("TERM", "xterm")
            .envs(environment.iter().copied())
            .spawn()
            .unwrap();
        drop(command);
        let mut screen = File::from(pty.master.try_clone().unwrap());
        let shown = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                shared.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { keys: File::from(pty.master), end: pty.slave, before, shown, child: Some(child) }
    }

    fn shows(&self, text: &str) {
        eventually(&format!("{text:?} on the screen"), || {
            self.shown.lock().unwrap().contains(text).then_some(())
        });
    }

    fn types(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
    }

    fn now(&self) -> Termios {
        tcgetattr(self.end.as_fd()).unwrap()
    }

    fn is_raw(&self) -> bool {
        !self.now().local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
    }

    /// Its exit code. The terminal is as it was.
    fn ends(&mut self) -> i32 {
        let code = ended(self.child.take().unwrap()).code;
        assert_eq!(self.now(), self.before, "the terminal is not as it was");
        code
    }
}

#[test]
fn what_is_typed_is_the_guests_and_the_escape_gives_the_terminal_back() {
    let fake = Fake::new();
    let guest = guest(&fake);
    let mut terminal = Terminal::with(&fake, &["console", "acme/web", "--history", "7"]);
    terminal.shows("^] detaches");
    guest.says.send(Bytes::from_static(b"login: ")).unwrap();
    terminal.shows("login: ");
    assert!(terminal.is_raw());
    assert_eq!(fake.lines(), [format!("{PATH}?write=true&history=7")]);
    // An interrupt is the guest's too, and an escape if it is typed twice.
    terminal.types(b"root\r\x03\x1d\x1d");
    guest.hears(b"root\r\x03\x1d");
    terminal.types(b"\x1d");
    assert_eq!(terminal.ends(), 0);
    terminal.shows("detached; the VM goes on");
    assert!(guest.hears.recv().is_err(), "the console is still open");
}

#[test]
fn signals_give_the_terminal_back() {
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)] {
        let fake = Fake::new();
        let guest = guest(&fake);
        let mut terminal = Terminal::with(&fake, &["console", "acme/web"]);
        guest.says.send(Bytes::from_static(b"login: ")).unwrap();
        terminal.shows("login: ");
        assert!(terminal.is_raw());
        terminal.signal(signal);
        assert_eq!(terminal.ends(), code);
    }
}

#[test]
fn an_end_of_the_guest_or_the_agent_gives_the_terminal_back() {
    let fake = Fake::new();
    let guest = guest(&fake);
    let mut terminal = Terminal::with(&fake, &["console", "acme/web"]);
    guest.says.send(Bytes::from_static(b"bye")).unwrap();
    terminal.shows("bye");
    drop(guest.says);
    assert_eq!(terminal.ends(), 0);
    terminal.shows("the console was closed");
}

#[test]
fn the_escape_can_be_another_and_read_only_sends_nothing() {
    let fake = Fake::new();
    let guest = guest(&fake);
    let mut terminal = Terminal::with(&fake, &["console", "acme/web", "--escape", "^A", "--read-only"]);
    terminal.shows("^A detaches");
    guest.says.send(Bytes::from_static(b"login: ")).unwrap();
    terminal.shows("login: ");
    terminal.types(b"root\r\x1d\x01x");
    assert_eq!(terminal.ends(), 0);
    assert!(guest.hears.recv().is_err(), "a reader wrote");
    assert!(fake.lines()[0].contains("write=false"), "{:?}", fake.lines());
}

#[test]
fn if_another_writes_it_is_said_and_reading_is_offered() {
    let fake = Fake::new();
    let (says, to_user) = unbounded_channel();
    let (from_user, _hears) = channel();
    let mut reply = Some(Reply::Console(to_user, from_user));
    fake.json(&format!("{PATH}?write=true&history=4096"), 409, refusal("in_use", "uid:7 writes", None));
    fake.on(&format!("{PATH}?write=false&history=4096"), move |_| reply.take().unwrap());
    let mut terminal = Terminal::with(&fake, &["console", "acme/web"]);
    terminal.shows("uid:7 writes");
    terminal.shows("Watch instead?");
    terminal.types(b"y\r");
    terminal.shows("watching the console of acme/web");
    says.send(Bytes::from_static(b"login: ")).unwrap();
    terminal.shows("login: ");
    terminal.types(b"\x1d");
    assert_eq!(terminal.ends(), 0);
    // Where nobody can be asked it is a refusal that names the way out.
    let said = run(&fake, &["console", "acme/web"]);
    assert!(said.code == 4 && said.err.contains("--read-only"), "{said:?}");
}

#[test]
fn a_pipe_can_have_a_console_too() {
    let fake = Fake::new();
    let guest = guest(&fake);
    let mut child = yun(&fake, &["console", "acme/web"]).stdin(Stdio::piped()).spawn().unwrap();
    // Without a terminal no byte is special.
    child.stdin.take().unwrap().write_all(b"power\x1doff\n").unwrap();
    guest.hears(b"power\x1doff\n");
    guest.says.send(Bytes::from_static(b"\x00\xffbye")).unwrap();
    drop(guest.says);
    let mut out = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
    assert_eq!(out, b"\x00\xffbye");
    assert_eq!(ended(child).code, 0);
}

#[test]
fn top_gives_the_screen_back_at_a_key_and_at_a_signal() {
    let fake = Fake::new();
    fake.json("GET /v1/stats", 200, json!([]));
    for signal in [None, Some(Signal::SIGTERM)] {
        let mut terminal = Terminal::with(&fake, &["top"]);
        terminal.shows("\x1b[?1049h");
        terminal.shows("0 VMs, 0 running");
        match signal {
            None => terminal.types(b"q"),
            Some(signal) => terminal.signal(signal),
        }
        assert_eq!(terminal.ends(), if signal.is_some() { 143 } else { 0 });
        terminal.shows("\x1b[?1049l");
    }
}

#[test]
fn on_a_terminal_there_are_tables_and_colours_unless_they_are_not_wanted_and_questions() {
    let fake = Fake::new();
    fake.json("GET /v1/vms", 200, json!([vm("web", "running")]));
    let mut terminal = Terminal::with(&fake, &["ls"]);
    assert_eq!(terminal.ends(), 0);
    terminal.shows("acme/web  ");
    terminal.shows("\x1b[");
    for plain in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let mut terminal = Terminal::having(&fake, &["ls"], &[plain]);
        assert_eq!(terminal.ends(), 0);
        terminal.shows("acme/web  running");
    }
    let mut terminal = Terminal::with(&fake, &["rm", "acme/web"]);
    terminal.shows("Remove VM acme/web? [y/N]");
    terminal.types(b"n\r");
    assert_eq!(terminal.ends(), 1);
    terminal.shows("nothing was done");
    assert_eq!(fake.lines(), ["GET /v1/vms"; 3]);
}

#[test]
fn long_work_shows_on_a_terminal_how_far_it_is() {
    let fake = Fake::new();
    fake.json("POST /v1/tenants/acme/vms/web/actions", 202, operation("vm_start", "running"));
    let (now_ended, ended) = channel::<()>();
    fake.on("GET /v1/operations/op-1/wait", move |_| {
        let state = if ended.try_recv().is_ok() { "succeeded" } else { "running" };
        Reply::Json(200, operation("vm_start", state))
    });
    let mut terminal = Terminal::with(&fake, &["start", "acme/web"]);
    terminal.shows("start of VM acme/web");
    terminal.shows("1/2");
    now_ended.send(()).unwrap();
    assert_eq!(terminal.ends(), 0);
    terminal.shows("start of VM acme/web: done");
}
