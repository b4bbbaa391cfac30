//! What shells and `man` need, made from the command line's own definition.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, CompletionCandidate};
use clap_mangen::roff::{Roff, bold, roman};
use serde::de::DeserializeOwned;

use super::args::Cli;
use super::args::host::Shell;
use super::client::Client;
use super::error::{EXIT_CODES, Failure};
use super::output::{Record, print_bytes};
use crate::agent::model::{Image, Operation, Tenant, Vm, Volume};

/// By this variable a shell asks what could come next.
const VARIABLE: &str = "YUN_COMPLETE";

/// A shell that completes does not wait longer for the agent.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers a shell and ends the process, if one asks; else does nothing. First thing in `main`.
pub fn answer_shell() {
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).bin("yun").completer("yun").complete();
}

/// `yun completion`.
///
/// # Errors
/// [`Failure::Output`].
pub(crate) fn script(shell: Shell) -> Result<(), Failure> {
    let name = match shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let mut script = Vec::new();
    match Shells::builtins().completer(name) {
        Some(completer) => completer.write_registration(VARIABLE, "yun", "yun", "yun", &mut script)?,
        None => return Err(Failure::Failed { message: format!("no script for {name}"), hint: None }),
    }
    print_bytes(&script)
}

/// `yun man`: yun.1 to stdout, or a page for each command to a directory.
///
/// # Errors
/// [`Failure::File`], [`Failure::Output`].
pub(crate) fn man(dir: Option<&Path>) -> Result<(), Failure> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let Some(dir) = dir else {
        return print_bytes(&page(&command)?);
    };
    fs::create_dir_all(dir).map_err(|source| Failure::File {
        what: "can't make",
        path: dir.to_owned(),
        source,
    })?;
    write_pages(&command, dir)
}

fn write_pages(command: &clap::Command, dir: &Path) -> Result<(), Failure> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let path = dir.join(format!("{name}.1"));
    fs::write(&path, page(command)?).map_err(|source| Failure::File { what: "can't write", path, source })?;
    command.get_subcommands().filter(|command| !command.is_hide_set()).try_for_each(|c| write_pages(c, dir))
}

fn page(command: &clap::Command) -> Result<Vec<u8>, io::Error> {
    let mut page = Vec::new();
    // The root's end is text for a terminal; here it has sections of its own.
    let root = command.get_name() == "yun";
    let shown = if root { command.clone().after_long_help(None) } else { command.clone() };
    clap_mangen::Man::new(shown).manual("Yun").render(&mut page)?;
    if root {
        let mut sections = Roff::new();
        sections.control("SH", ["EXIT STATUS"]);
        for (code, meaning) in EXIT_CODES {
            sections.control("TP", []).text([bold(code.to_string())]).text([roman(*meaning)]);
        }
        sections.control("PP", []).text([roman("yun run --foreground ends as its VM does.")]);
        sections.control("SH", ["ENVIRONMENT"]);
        for (variable, meaning) in ENVIRONMENT {
            sections.control("TP", []).text([bold(*variable)]).text([roman(*meaning)]);
        }
        sections.to_writer(&mut page)?;
    }
    Ok(page)
}

/// What it looks for in the environment.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("YUN_SOCKET", "the agent's socket"),
    ("YUN_TENANT", "whose things, where the command does not say it"),
    ("NO_COLOR", "if set to anything: no colours"),
];

/// What stands at the end of help.
pub(crate) fn exit_codes_and_environment() -> String {
    let mut text = String::from("Exit codes:\n");
    for (code, meaning) in EXIT_CODES {
        text.push_str(&format!("  {code:>3}  {meaning}\n"));
    }
    text.push_str("  `yun run --foreground` ends as its VM does.\n\n");
    text.push_str("Environment:\n");
    for (variable, meaning) in ENVIRONMENT {
        text.push_str(&format!("  {variable:10}  {meaning}\n"));
    }
    text
}

/// Where the agent is, as far as can be told while a command line is still being written.
fn socket() -> PathBuf {
    std::env::var_os("YUN_SOCKET").map_or_else(|| PathBuf::from("/run/yun/yund.sock"), PathBuf::from)
}

/// What the agent has, or nothing: completion does not complain.
fn ask<T: Record + DeserializeOwned>(path: &str) -> Vec<T> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let client = Client::new(socket(), PATIENCE);
    runtime.block_on(async {
        let answer = tokio::time::timeout(PATIENCE, client.get(path)).await;
        answer.ok().and_then(Result::ok).unwrap_or_default()
    })
}

fn candidates<T: Record>(found: &[T]) -> Vec<CompletionCandidate> {
    let tenant = std::env::var("YUN_TENANT").map(|tenant| tenant + "/").unwrap_or_default();
    let short = |key: String| match key.strip_prefix(&tenant) {
        Some(short) if !tenant.is_empty() => short.to_owned(),
        _ => key,
    };
    found.iter().map(|record| CompletionCandidate::new(short(record.key()))).collect()
}

/// VMs, for completion.
pub(crate) fn vms() -> Vec<CompletionCandidate> {
    candidates(&ask::<Vm>("/v1/vms"))
}

/// Tenants, for completion.
pub(crate) fn tenants() -> Vec<CompletionCandidate> {
    candidates(&ask::<Tenant>("/v1/tenants"))
}

/// Images, for completion.
pub(crate) fn images() -> Vec<CompletionCandidate> {
    candidates(&ask::<Image>("/v1/images"))
}

/// Volumes of the tenants that one may see, for completion.
pub(crate) fn volumes() -> Vec<CompletionCandidate> {
    let tenants = match std::env::var("YUN_TENANT") {
        Ok(tenant) => vec![tenant],
        Err(_) => ask::<Tenant>("/v1/tenants").iter().map(Record::key).collect(),
    };
    let of = |tenant: String| ask::<Volume>(&format!("/v1/tenants/{tenant}/volumes"));
    candidates(&tenants.into_iter().take(16).flat_map(of).collect::<Vec<_>>())
}

/// Operations, for completion.
pub(crate) fn operations() -> Vec<CompletionCandidate> {
    candidates(&ask::<Operation>("/v1/operations"))
}

#[cfg(test)]
#[path = "complete_tests.rs"]
mod tests;
