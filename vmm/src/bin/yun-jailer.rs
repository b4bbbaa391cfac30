//! `yun-jailer`: starts a VMM in a jail. Arguments, and hand over.

use std::io::Write;
use std::process::ExitCode;

use vmm::jailer_args::{self, Invocation};
use vmm::sandbox::jail::{self, Started};

/// Exit status if there is no VMM.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let started = Started::now();
    let print = |text: &str| match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    };
    let spec = match Invocation::parse(std::env::args_os().skip(1), started) {
        Ok(Invocation::Help) => return print(jailer_args::HELP),
        Ok(Invocation::Version) => return print(&jailer_args::version()),
        Ok(Invocation::Run(spec)) => spec,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(jailer_args::EXIT_ARGUMENTS);
        }
    };
    match jail::run(&spec) {
        // It goes on without us.
        Ok(_vmm) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("yun-jailer: {}", jail::in_words(&error));
            ExitCode::from(FAILED)
        }
    }
}
