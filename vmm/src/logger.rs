//! The process's log, in Firecracker's form: `2026-11-23T01:02:03.123456789 [id:thread:LEVEL:file:line] text`.
//!
//! A line is formatted by whoever logs and handed to the host in one write that never waits: what standard output, a
//! file or a FIFO does not take at once is dropped and counted. Form and destination can be changed at any time.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread;

use devices::clock::monotonic_ns;
use devices::limiter::{BucketSpec, TokenBucket};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::output::Output;
use crate::spec::{self, InstanceId};
use crate::utc::Utc;

/// Longest line; what exceeds it is cut off. A pipe takes so much whole or not at all (PIPE_BUF).
const LINE_LEN_MAX: usize = 4096;

static LOGGER: OnceLock<Logger> = OnceLock::new();
static MISSED: AtomicU64 = AtomicU64::new(0);
/// Where the log goes; standard output to begin with.
static RAW_FD: AtomicI32 = AtomicI32::new(1);

/// How many lines were dropped so far.
pub fn missed() -> u64 {
    MISSED.load(Ordering::Relaxed)
}

/// The log's descriptor, for a signal's handler: it may have been closed and be another file a moment later.
#[must_use]
pub fn raw_fd() -> RawFd {
    RAW_FD.load(Ordering::Relaxed)
}

/// Starts logging at level Info. Call it once, first of all; nothing is written before [`configure`] says where to.
pub fn init(id: &InstanceId) {
    let logger = LOGGER.get_or_init(|| Logger { id: id.to_string(), state: Mutex::new(State::default()) });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Changes form and destination of the log; what `spec` does not name stays as it is, standard output to begin with.
///
/// # Errors
/// What the host says of the file; nothing has changed then.
pub fn configure(spec: &spec::Logger) -> io::Result<()> {
    let Some(logger) = LOGGER.get() else { return Ok(()) };
    logger.configure(spec)?;
    if let Some(level) = spec.level {
        log::set_max_level(level.into());
    }
    Ok(())
}

#[derive(Debug)]
struct Logger {
    id: String,
    state: Mutex<State>,
}

/// What the log may grow by: a burst for whoever looks closely, then 64 KiB a second. What exceeds it is dropped and counted,
/// so that no guest and no client fills a disk, however it makes us talk.
const VOLUME: BucketSpec = BucketSpec { size: 64 << 10, one_time_burst: 4 << 20, refill_time_ms: 1000 };

#[derive(Debug, Default)]
struct State {
    volume: Option<TokenBucket>,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
    output: Option<Output>,
}

impl Logger {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn configure(&self, spec: &spec::Logger) -> io::Result<()> {
        let output = match &spec.log_path {
            Some(path) => Some(Output::file(path.as_ref())?),
            None => None,
        };
        let mut state = self.lock();
        // Now, not with the first line: the thread that has it may open nothing.
        let output = output.or_else(|| state.output.is_none().then(Output::stdout).and_then(Result::ok));
        if let Some(output) = output {
            RAW_FD.store(output.as_fd().as_raw_fd(), Ordering::Relaxed);
            state.output = Some(output);
        }
        state.show_level = spec.show_level.unwrap_or(state.show_level);
        state.show_origin = spec.show_log_origin.unwrap_or(state.show_origin);
        state.module = spec.module.clone().or(state.module.take());
        Ok(())
    }

    fn line(&self, state: &State, record: &Record<'_>) -> String {
        let thread = thread::current();
        let mut line = String::with_capacity(160);
        // The first thread has no name where std did not start the program; all others have one.
        let _ = write!(line, "{} [{}:{}", Utc::now(), self.id, thread.name().unwrap_or("main"));
        if state.show_level {
            let _ = write!(line, ":{}", level_name(record.level()));
        }
        if state.show_origin {
            let _ = write!(line, ":{}:{}", record.file().unwrap_or("unknown"), record.line().unwrap_or(0));
        }
        let _ = write!(line, "] {}", record.args());
        // A path or a guest may have put line ends into the text: one message stays one line.
        if line.contains(['\n', '\r']) {
            line = line.replace('\n', "\\n").replace('\r', "\\r");
        }
        if line.len() >= LINE_LEN_MAX {
            line.truncate(line.floor_char_boundary(LINE_LEN_MAX - 1));
        }
        line.push('\n');
        line
    }
}

/// As Firecracker spells it.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "ERROR",
        Level::Warn => "WARN",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
        Level::Trace => "TRACE",
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let mut state = self.lock();
        let from = record.module_path().unwrap_or("");
        if state.module.as_ref().is_some_and(|module| !from.starts_with(module.as_str())) {
            return;
        }
        let line = self.line(&state, record);
        let volume =
            state.volume.get_or_insert_with(|| TokenBucket::new(&VOLUME, monotonic_ns()).expect("a limit"));
        let too_much = volume.consume(monotonic_ns(), line.len() as u64).is_err();
        if too_much || state.output.as_mut().is_none_or(|output| output.write_all(line.as_bytes()).is_err()) {
            MISSED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Rig {
        dir: tempfile::TempDir,
        logger: Logger,
    }

    impl Rig {
        fn new() -> Self {
            let logger = Logger { id: "vm-1".to_owned(), state: Mutex::default() };
            let rig = Self { dir: tempfile::tempdir().unwrap(), logger };
            rig.configure(spec::Logger { log_path: Some(rig.path("log")), ..spec::Logger::default() });
            rig
        }

        fn path(&self, name: &str) -> String {
            self.dir.path().join(name).to_str().unwrap().to_owned()
        }

        fn configure(&self, spec: spec::Logger) {
            self.logger.configure(&spec).unwrap();
        }

        fn log(&self, module: &str, text: &str) {
            self.logger.log(
                &Record::builder()
                    .level(Level::Warn)
                    .module_path(Some(module))
                    .file(Some("a.rs"))
                    .line(Some(7))
                    .args(format_args!("{text}"))
                    .build(),
            );
        }

        fn lines(&self, name: &str) -> Vec<String> {
            fs::read_to_string(self.path(name)).unwrap().lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn a_line_names_instance_thread_and_on_demand_level_and_origin() {
        let rig = Rig::new();
        rig.log("m", "first");
        rig.configure(spec::Logger {
            show_level: Some(true),
            show_log_origin: Some(true),
            ..spec::Logger::default()
        });
        rig.log("m", "second");
        let lines = rig.lines("log");
        let thread = thread::current().name().unwrap().to_owned();
        assert!(lines[0].ends_with(&format!(" [vm-1:{thread}] first")), "{}", lines[0]);
        assert!(lines[1].ends_with(&format!(" [vm-1:{thread}:WARN:a.rs:7] second")), "{}", lines[1]);
        assert_eq!(lines[0].find(' '), Some("2026-11-23T01:02:03.123456789".len()));
    }

    #[test]
    fn only_the_wanted_module_is_logged() {
        let rig = Rig::new();
        rig.configure(spec::Logger { module: Some("vmm::api".to_owned()), ..spec::Logger::default() });
        rig.log("vmm::control", "no");
        rig.log("vmm::api::server", "yes");
        assert_eq!(rig.lines("log").len(), 1);
    }

    #[test]
    fn the_destination_can_be_changed_and_one_that_cannot_be_opened_changes_nothing() {
        let rig = Rig::new();
        let nowhere =
            spec::Logger { log_path: Some("/nowhere/at/all".to_owned()), ..spec::Logger::default() };
        assert_eq!(
            rig.logger.configure(&nowhere).unwrap_err().to_string(),
            "No such file or directory (os error 2)"
        );
        rig.log("m", "one");
        rig.configure(spec::Logger { log_path: Some(rig.path("other")), ..spec::Logger::default() });
        rig.log("m", "two");
        assert_eq!((rig.lines("log").len(), rig.lines("other").len()), (1, 1));
    }

    #[test]
    fn a_file_that_was_inherited_takes_the_log() {
        let rig = Rig::new();
        let file = fs::File::create(rig.path("lent")).unwrap();
        let name = format!("fd:{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let lent = spec::Logger { log_path: Some(name), ..spec::Logger::default() };
        assert!(rig.logger.configure(&lent).is_err(), "opened by this process");
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        rig.configure(lent);
        rig.log("m", "one");
        assert_eq!(rig.lines("lent").len(), 1);
    }

    #[test]
    fn a_fifo_nobody_reads_blocks_nothing_and_what_it_does_not_take_is_counted() {
        let rig = Rig::new();
        nix::unistd::mkfifo(rig.path("fifo").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        rig.configure(spec::Logger { log_path: Some(rig.path("fifo")), ..spec::Logger::default() });
        let before = missed();
        for _ in 0..100 {
            rig.log("m", &"x".repeat(10_000));
        }
        assert!(missed() > before);
    }

    #[test]
    fn the_log_grows_by_no_more_than_its_volume() {
        let rig = Rig::new();
        let before = missed();
        for _ in 0..2000 {
            rig.log("m", &"x".repeat(4000));
        }
        let written = fs::metadata(rig.path("log")).unwrap().len();
        assert!((4 << 20..5 << 20).contains(&written), "{written}");
        assert!(missed() - before > 500);
    }

    #[test]
    fn one_message_is_one_line() {
        let rig = Rig::new();
        rig.log("m", "first\nsecond\r");
        assert!(rig.lines("log")[0].ends_with(r"] first\nsecond\r"));
        assert_eq!(rig.lines("log").len(), 1);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let rig = Rig::new();
        rig.log("m", &"é".repeat(5_000));
        let line = &rig.lines("log")[0];
        assert!(line.len() < LINE_LEN_MAX && line.len() > LINE_LEN_MAX - 3);
    }
}
