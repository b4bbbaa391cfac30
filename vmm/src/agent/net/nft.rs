//! `nft` as a child: a script in, what it says out, and an end to waiting.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// How long one run may take: a hundred times what the largest takes.
const RUN_MAX: Duration = Duration::from_secs(30);
/// Most bytes of a complaint that are kept.
const SAID_BYTES_MAX: u64 = 4096;

/// Why `nft` did not do what it was told. A script is one transaction: after an error nothing of it is in force.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// It could not be run at all.
    #[error("can't run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// It refused.
    #[error("nft refuses to {doing}: {said}")]
    Refused {
        /// To do what.
        doing: &'static str,
        /// What it says.
        said: String,
    },
    /// It did not end, and was killed.
    #[error("nft did not {doing} within {} s", RUN_MAX.as_secs())]
    TooLong {
        /// What it was doing.
        doing: &'static str,
    },
    /// It said something else than JSON.
    #[error("nft was to {doing} in JSON")]
    Json {
        /// What it was doing.
        doing: &'static str,
        /// Where it fails.
        source: serde_json::Error,
    },
}

/// Runs a script.
pub(super) fn apply(program: &Path, doing: &'static str, script: &str) -> Result<(), NftError> {
    run(program, doing, &["-f", "-"], script).map(drop)
}

/// Lists something in JSON.
pub(super) fn list(
    program: &Path,
    doing: &'static str,
    what: &[&str],
) -> Result<serde_json::Value, NftError> {
    let arguments = [&["-j", "list"], what].concat();
    let said = run(program, doing, &arguments, "")?;
    serde_json::from_slice(&said).map_err(|source| NftError::Json { doing, source })
}

fn run(program: &Path, doing: &'static str, arguments: &[&str], script: &str) -> Result<Vec<u8>, NftError> {
    let failed = |source: io::Error| NftError::Run { program: program.to_owned(), source };
    let memory =
        || memfd_create(c"yun-nft", MFdFlags::MFD_CLOEXEC).map(File::from).map_err(|e| failed(e.into()));
    // Its input and its complaints are files, so neither side ever waits for the other; its output is a pipe, whose end is
    // its end.
    let (mut input, mut complaints) = (memory()?, memory()?);
    input.write_all(script.as_bytes()).and_then(|()| input.rewind()).map_err(failed)?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/");
    command.stdin(input).stdout(Stdio::piped()).stderr(complaints.try_clone().map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    let said = child.stdout.take().map(|stdout| read_to_end(stdout, Instant::now() + RUN_MAX));
    if !matches!(said, Some(Ok(Some(_)))) {
        // It may have ended just now; then there is nothing to kill.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let Some(said) = said.transpose().map_err(failed)?.flatten() else {
        return Err(NftError::TooLong { doing });
    };
    if status.success() {
        return Ok(said);
    }
    let mut why = Vec::new();
    complaints
        .rewind()
        .and_then(|()| complaints.take(SAID_BYTES_MAX).read_to_end(&mut why))
        .map_err(failed)?;
    Err(NftError::Refused { doing, said: first_lines(&String::from_utf8_lossy(&why)) })
}

/// `nft` repeats the line that it complains about, which may be a hundred kilobytes.
fn first_lines(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim().is_empty()).take(2);
    lines.map(|line| line.chars().take(200).collect::<String>()).collect::<Vec<_>>().join(" | ")
}

/// All that comes until the other end is closed; nothing if it is not closed by `deadline`.
fn read_to_end(mut from: impl Read + AsFd, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let mut all = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(None),
            Ok(_) => {}
        }
        match from.read(&mut piece) {
            Ok(0) => return Ok(Some(all)),
            Ok(len) => all.extend_from_slice(piece.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reaches_the_child_whose_environment_is_empty() {
        let said = run(Path::new("/bin/sh"), "say", &["-s"], "cat /proc/self/environ; echo said").unwrap();
        assert!(said.ends_with(b"said\n"));
        assert!(!said.windows(5).any(|w| w == b"HOME=" || w == b"CARGO"));
    }

    #[test]
    fn a_complaint_is_passed_on_shortened() {
        let script = "seq 100000 | tr '\\n' ' ' >&2; exit 1";
        let error = run(Path::new("/bin/sh"), "count", &["-s"], script).unwrap_err().to_string();
        assert!(error.starts_with("nft refuses to count: 1 2 3") && error.len() < 300, "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = apply(Path::new("/no/nft"), "nothing", "").unwrap_err();
        assert_eq!(error.to_string(), "can't run /no/nft");
    }

    #[test]
    fn who_keeps_the_output_open_is_not_waited_for_forever() {
        let (ours, _theirs) = io::pipe().unwrap();
        assert_eq!(read_to_end(ours, Instant::now()).unwrap(), None);
    }
}
