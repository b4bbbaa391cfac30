//! `yun`: the shell of this server's agent. Hands over.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Does nothing and returns, unless a shell asks what could come next.
    vmm::cli::complete::answer_shell();
    ExitCode::from(vmm::cli::main(std::env::args_os()))
}
