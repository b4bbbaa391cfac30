//! A VM's console: two FIFOs that outlive both ends, a bounded file of what was said, readers, and at most one writer.
//!
//! ```text
//!   VMM stdout ──> console.out (FIFO) ──> agent ──> console.log, .1   what is kept
//!                                           └─────> readers           what comes
//!   VMM stdin  <── console.in  (FIFO) <── agent <── the writer
//! ```
//! Both processes have both FIFOs open for reading and writing, so neither sees the other's death: while the agent is
//! gone the VMM fills the pipe and drops what does not fit, and the next agent goes on reading where this one ended.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::net::unix::pipe;
use tokio::sync::broadcast;

/// Chunks that a reader may be behind before it loses some.
const BEHIND_MAX: usize = 64;
/// Bytes read at once.
const CHUNK: usize = 4096;

const OUT: &str = "console.out";
const IN: &str = "console.in";
const LOG: &str = "console.log";
const OLD: &str = "console.log.1";

/// The ends that a VMM gets: its standard input and output.
#[derive(Debug)]
pub struct VmmEnds {
    /// Standard input.
    pub stdin: File,
    /// Standard output.
    pub stdout: File,
}

/// One VM's console.
#[derive(Debug)]
pub struct Console {
    dir: PathBuf,
    keep: u64,
    live: broadcast::Sender<Arc<[u8]>>,
    writer: Arc<Mutex<bool>>,
    log: Mutex<Option<(File, u64)>>,
}

/// What was said before, and what is said from then on.
pub type Attached = (Vec<u8>, broadcast::Receiver<Arc<[u8]>>);

/// The right to write; given back when dropped.
#[derive(Debug)]
pub struct WriterToken(Arc<Mutex<bool>>);

impl Drop for WriterToken {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

fn open_fifo(path: &Path) -> io::Result<File> {
    match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(nix::Error::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

impl Console {
    /// The console whose files are in `dir`, twice `keep` bytes of whose output are kept.
    #[must_use]
    pub fn new(dir: PathBuf, keep: u64) -> Arc<Self> {
        let live = broadcast::Sender::new(BEHIND_MAX);
        Arc::new(Self { dir, keep, live, writer: Arc::default(), log: Mutex::new(None) })
    }

    /// Opens what a VMM gets; the FIFOs are made if they are not there.
    ///
    /// # Errors
    /// What the host says.
    pub fn vmm_ends(&self) -> io::Result<VmmEnds> {
        Ok(VmmEnds { stdin: open_fifo(&self.dir.join(IN))?, stdout: open_fifo(&self.dir.join(OUT))? })
    }

    /// Reads what the guest says for as long as this is polled. To be called on the runtime, once for each incarnation.
    ///
    /// # Errors
    /// What the host says of the FIFO.
    pub async fn pump(&self) -> io::Result<()> {
        let fifo = pipe::Receiver::from_file_unchecked(open_fifo(&self.dir.join(OUT))?)?;
        let mut bytes = vec![0; CHUNK];
        loop {
            fifo.readable().await?;
            match fifo.try_read(&mut bytes) {
                Ok(0) => {} // not with our own writing end
                Ok(len) => self.take(&bytes[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what is left in the FIFO of a VMM that has ended.
    pub fn drain(&self) {
        let Ok(mut fifo) = open_fifo(&self.dir.join(OUT)) else { return };
        let mut bytes = vec![0; CHUNK];
        while let Ok(len @ 1..) = fifo.read(&mut bytes) {
            self.take(&bytes[..len]);
        }
    }

    fn take(&self, bytes: &[u8]) {
        if let Err(error) = self.keep(bytes) {
            log::warn!("{}: the console's output is not kept: {error}", self.dir.display());
        }
        // Without readers nobody takes it.
        let _ = self.live.send(bytes.into());
    }

    fn keep(&self, bytes: &[u8]) -> io::Result<()> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.is_none() {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.dir.join(LOG))?;
            let len = file.metadata()?.len();
            *log = Some((file, len));
        }
        if let Some((file, len)) = log.as_mut() {
            file.write_all(bytes)?;
            *len += bytes.len() as u64;
            if *len >= self.keep {
                fs::rename(self.dir.join(LOG), self.dir.join(OLD))?;
                *log = None;
            }
        }
        Ok(())
    }

    /// Up to `max` bytes of what was said last, and what is said from then on.
    ///
    /// # Errors
    /// What the host says.
    pub fn attach(&self, max: u64) -> io::Result<Attached> {
        // Nothing is kept meanwhile, so nothing is missing between the two, and nothing twice.
        let _log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.live.subscribe();
        Ok((self.last(max)?, live))
    }

    /// Up to `max` bytes of what was said last.
    ///
    /// # Errors
    /// What the host says.
    pub fn last(&self, max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for name in [OLD, LOG] {
            match File::open(self.dir.join(name)) {
                Ok(mut file) => {
                    let len = file.metadata()?.len();
                    file.seek(SeekFrom::Start(len.saturating_sub(max)))?;
                    file.take(max).read_to_end(&mut bytes)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let excess = bytes.len().saturating_sub(usize::try_from(max).unwrap_or(usize::MAX));
        Ok(bytes.split_off(excess))
    }

    /// The right to write, unless somebody has it.
    #[must_use]
    pub fn writer(&self) -> Option<WriterToken> {
        let mut taken = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if *taken {
            return None;
        }
        *taken = true;
        Some(WriterToken(Arc::clone(&self.writer)))
    }

    /// Sends input to the guest, as it takes it. To be called on the runtime.
    ///
    /// # Errors
    /// What the host says.
    pub fn input(&self) -> io::Result<pipe::Sender> {
        pipe::Sender::from_file_unchecked(open_fifo(&self.dir.join(IN))?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn what_the_guest_says_is_kept_within_bounds_and_reaches_every_reader() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::new(dir.path().to_owned(), 100);
        let mut vmm = console.vmm_ends().unwrap();
        runtime().block_on(async {
            vmm.stdout.write_all(b"before").unwrap(); // while no agent reads
            let pump = console.pump();
            let mut pump = std::pin::pin!(pump);
            let reads = async {
                let (mut history, mut first) = console.attach(1000).unwrap();
                let (_, mut second) = console.attach(0).unwrap();
                while history != b"before" {
                    history.extend_from_slice(&first.recv().await.unwrap());
                }
                second.recv().await.unwrap();
                for n in 0..50 {
                    vmm.stdout.write_all(format!("line {n:04}\n").as_bytes()).unwrap();
                    let (one, two) = (first.recv().await.unwrap(), second.recv().await.unwrap());
                    assert_eq!((&*one, &*two), (format!("line {n:04}\n").as_bytes(), &*one));
                }
            };
            tokio::select! {
                result = &mut pump => panic!("{result:?}"),
                () = reads => {}
                () = tokio::time::sleep(Duration::from_secs(20)) => panic!("nothing was read"),
            }
        });
        let kept = console.last(1000).unwrap();
        assert!((100..=220).contains(&kept.len()), "{}", kept.len());
        assert!(kept.ends_with(b"line 0048\nline 0049\n"));
        assert_eq!(console.last(5).unwrap(), b"0049\n");
    }

    #[test]
    fn one_writes_at_a_time_and_input_reaches_the_vmm() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::new(dir.path().to_owned(), 100);
        let mut vmm = console.vmm_ends().unwrap();
        let token = console.writer().unwrap();
        assert!(console.writer().is_none());
        drop(token);
        assert!(console.writer().is_some());
        runtime().block_on(async {
            let input = console.input().unwrap();
            input.writable().await.unwrap();
            assert_eq!(input.try_write(b"ls\n").unwrap(), 3);
        });
        let mut bytes = [0; 8];
        assert_eq!(vmm.stdin.read(&mut bytes).unwrap(), 3);
    }
}
