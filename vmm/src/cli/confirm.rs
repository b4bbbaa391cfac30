//! Asking before something is destroyed.

use std::io::{self, BufRead, IsTerminal, Write};

use super::args::Sure;
use super::error::Failure;
use super::output::{note, printable};

/// What the user says to something that can't be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Do it.
    Go,
    /// It was only asked what would be done, and that is said.
    DryRun,
}

/// Asks whether to do `what`, as in `remove VM a/web`.
///
/// # Errors
/// [`Failure::Usage`] if there is nobody to ask, [`Failure::Failed`] if the answer is no.
pub(crate) fn confirm(sure: Sure, what: &str) -> Result<Answer, Failure> {
    if sure.dry_run {
        note(&format!("would {what}"));
        return Ok(Answer::DryRun);
    }
    if sure.yes {
        return Ok(Answer::Go);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(
            format!("to {what} has to be confirmed, and there is no terminal to ask on"),
            "--yes does it without asking, --dry-run says what would be done",
        ));
    }
    if ask(&format!("{}? [y/N] ", sentence(what)))?.is_some_and(|answer| means_yes(&answer)) {
        return Ok(Answer::Go);
    }
    Err(Failure::Failed { message: "not confirmed: nothing was done".to_owned(), hint: None })
}

/// Asks on the terminal: a line, or the end of input.
pub(crate) fn ask(question: &str) -> Result<Option<String>, Failure> {
    let failed = |source| Failure::System { what: "can't ask", source };
    let mut stderr = io::stderr().lock();
    stderr.write_all(printable(question).as_bytes()).and_then(|()| stderr.flush()).map_err(failed)?;
    let mut line = String::new();
    let length = io::stdin().lock().read_line(&mut line).map_err(failed)?;
    Ok((length > 0).then_some(line))
}

/// Whether an answer is a yes.
pub(crate) fn means_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

fn sentence(what: &str) -> String {
    let mut letters = what.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for yes in ["y\n", "YES\n", " yes \n"] {
            assert!(means_yes(yes), "{yes}");
        }
        for no in ["\n", "", "n\n", "yep\n", "ja\n"] {
            assert!(!means_yes(no), "{no}");
        }
        assert_eq!(sentence("remove VM a/b"), "Remove VM a/b");
    }
}
