//! The terminal, as long as it is the guest's or a full screen, and that it is given back however the command ends: on return
//! and on panic by [`Raw`]'s end, in builds that abort on panic by a hook; signals are waited for, so they end as returns do.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr, tcsetattr,
};
use tokio::sync::mpsc;

use super::error::Failure;

/// What has to be given back.
struct Kept {
    before: Termios,
    screen: bool,
}

static KEPT: Mutex<Option<Kept>> = Mutex::new(None);

/// Wraps lines, shows the cursor, and leaves the alternate screen.
const SCREEN_OFF: &[u8] = b"\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Enters the alternate screen, hides the cursor, and cuts lines off.
const SCREEN_ON: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l";

/// Stdin's terminal is raw as long as this lives.
pub(crate) struct Raw(());

/// How much is taken from the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// All keys go through, `^C` too.
    Keys,
    /// Keys are not shown and come one by one, but `^C` is a signal; and the screen is another.
    Screen,
}

impl Raw {
    /// Takes stdin's terminal; `None` if stdin is none.
    ///
    /// # Errors
    /// [`Failure::System`] if its attributes can't be changed; they are as they were.
    pub(crate) fn take(take: Take) -> Result<Option<Self>, Failure> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = |error: nix::Error| Failure::System {
            what: "the terminal can't be made raw",
            source: error.into(),
        };
        let before = tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        match take {
            Take::Keys => cfmakeraw(&mut raw),
            Take::Screen => {
                raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
                // `^Z` would leave the shell with this screen.
                if let Some(suspend) = raw.control_chars.get_mut(SpecialCharacterIndices::VSUSP as usize) {
                    *suspend = nix::libc::_POSIX_VDISABLE;
                }
            }
        }
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                give_back();
                next(info);
            }));
        });
        let screen = take == Take::Screen;
        // Before anything is changed: what is kept is what gets back.
        *kept() = Some(Kept { before, screen });
        let guard = Self(());
        tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &raw).map_err(failed)?;
        if screen {
            let mut stdout = io::stdout().lock();
            stdout.write_all(SCREEN_ON).and_then(|()| stdout.flush())?;
        }
        Ok(Some(guard))
    }
}

fn kept() -> std::sync::MutexGuard<'static, Option<Kept>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn give_back() {
    // A panic while it is locked is one of this room's own; better no terminal back than none of the message.
    let kept = match KEPT.try_lock() {
        Ok(mut kept) => kept.take(),
        Err(_) => None,
    };
    if let Some(kept) = kept {
        if kept.screen {
            let mut stdout = io::stdout().lock();
            let _ = stdout.write_all(SCREEN_OFF).and_then(|()| stdout.flush());
        }
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &kept.before);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        give_back();
    }
}

/// What comes in on stdin, read by a thread of its own that ends with the process: terminals, pipes and files alike. The
/// channel ends with stdin.
pub(crate) fn stdin() -> Result<mpsc::Receiver<Vec<u8>>, Failure> {
    let (sender, receiver) = mpsc::channel(4);
    let read = move || {
        let mut buffer = [0; 4096];
        loop {
            match io::Read::read(&mut io::stdin().lock(), &mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(length @ 1..) => {
                    let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                    if sender.blocking_send(bytes).is_err() {
                        return;
                    }
                }
                Ok(0) | Err(_) => return,
            }
        }
    };
    let thread = std::thread::Builder::new().name("yun_stdin".to_owned()).spawn(read);
    thread.map_err(|source| Failure::System { what: "no thread for stdin", source })?;
    Ok(receiver)
}
