//! The shell's side of the agent: `yun`, which asks over the agent's socket and prints what it says.
//!
//! | room | one idea |
//! |---|---|
//! | [`args`] | the command line; help, completion and manual pages are made from it |
//! | `client` | HTTP on the socket, a limit on every wait |
//! | [`error`] | what can go wrong, and the exit codes |
//! | [`output`], `records` | tables, tabs, JSON, YAML, names; which columns a thing has |
//! | `operation`, `signals` | long work: progress, and Ctrl-C that detaches |
//! | `vm`, `spec`, `run`, `manifest` | VMs, one by one, in the foreground, from files |
//! | `image`, `volume`, `net`, `tenant`, `host`, [`audit`] | the other things |
//! | `console`, [`mod@escape`], `terminal`, `screen`, `top`, `stream` | what takes the terminal, or goes on |
//! | [`complete`] | what a shell and `man` need |
//!
//! One thread and a current-thread runtime; stdin is read by a thread of its own where the terminal is the guest's. Nothing
//! here decides what is allowed: the agent does.

pub mod args;
pub mod audit;
mod client;
pub mod complete;
mod confirm;
mod console;
pub mod error;
pub mod escape;
mod host;
mod image;
mod manifest;
mod net;
mod operation;
pub mod output;
mod records;
mod run;
mod screen;
mod signals;
mod spec;
mod stream;
mod tenant;
mod terminal;
mod top;
mod vm;
mod volume;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use clap::Parser;

use crate::agent::model::{ErrorBody, Name};
use args::values::Which;
use args::{Cli, Command, Global};
use client::{Client, escape};
use error::Failure;
use output::{Format, Out};

/// What every command has at hand.
pub(crate) struct Context {
    client: Client,
    out: Out,
    tenant: Option<Name>,
}

impl Context {
    fn new(global: &Global) -> Self {
        Self {
            client: Client::new(global.socket.clone(), global.request_timeout.duration()),
            out: Out::new(global.format, !global.no_headers),
            tenant: global.tenant.clone(),
        }
    }

    /// The tenant of `--tenant`.
    fn tenant(&self) -> Result<&Name, Failure> {
        self.tenant.as_ref().ok_or_else(|| {
            Failure::usage("no tenant is named", "write tenant/name, or give --tenant or $YUN_TENANT")
        })
    }

    /// A list of each tenant's things: those of `--tenant`, or of all that one may see.
    async fn of_tenants<T: serde::de::DeserializeOwned>(&self, kind: &str) -> Result<Vec<T>, Failure> {
        let tenants = match &self.tenant {
            Some(tenant) => vec![tenant.clone()],
            None => {
                let all: Vec<crate::agent::model::Tenant> = self.client.get("/v1/tenants").await?;
                all.into_iter().map(|tenant| tenant.name).collect()
            }
        };
        let mut found = Vec::new();
        for tenant in tenants {
            found.extend(self.client.get::<Vec<T>>(&format!("/v1/tenants/{tenant}/{kind}")).await?);
        }
        Ok(found)
    }

    /// Whose it is.
    fn tenant_of<'a>(&'a self, which: &'a Which) -> Result<&'a Name, Failure> {
        which.tenant.as_ref().map_or_else(|| self.tenant(), Ok)
    }

    /// The path of one of a tenant's things; `kind` is `vms`, `volumes`, `subnets`.
    fn path(&self, kind: &str, which: &Which) -> Result<String, Failure> {
        Ok(format!("/v1/tenants/{}/{kind}/{}", self.tenant_of(which)?, which.name))
    }

    /// How it is called in full.
    fn title(&self, which: &Which) -> Result<String, Failure> {
        Ok(format!("{}/{}", self.tenant_of(which)?, which.name))
    }
}

/// Does what the command line asks for, and says how it went: the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error, &arguments),
    };
    let format = cli.global.format;
    match carry_out(cli) {
        Ok(code) => code,
        Err(failure) => {
            report(&failure, format);
            failure.exit()
        }
    }
}

/// Help and version are no mistakes. What is one is told as any other failure where JSON was asked for.
fn refuse_arguments(error: &clap::Error, arguments: &[OsString]) -> u8 {
    if !error.use_stderr() {
        let _ = error.print();
        return error::OK;
    }
    let pairs = arguments.windows(2).any(|pair| pair[0] == "--format" && pair[1] == "json");
    if pairs || arguments.iter().any(|argument| argument == "--format=json") {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        report(&Failure::usage(message, "see --help"), Format::Json);
    } else {
        let _ = error.print();
    }
    error::USAGE
}

/// An error is message, hint and code; an [`ErrorBody`] where JSON was asked for.
fn report(failure: &Failure, format: Format) {
    if failure.is_quiet() {
        return;
    }
    let denial = failure.denial();
    let mut stderr = std::io::stderr().lock();
    if format == Format::Json {
        if let Ok(body) = serde_json::to_string(&ErrorBody { error: denial }) {
            let _ = writeln!(stderr, "{body}");
        }
        return;
    }
    let message = output::printable(&denial.message);
    let _ = writeln!(stderr, "yun: {message} [{}]", output::word(&denial.code));
    if let Some(hint) = denial.hint {
        let _ = writeln!(stderr, "hint: {}", output::printable(&hint));
    }
}

fn carry_out(cli: Cli) -> Result<u8, Failure> {
    // Without an agent, and without a runtime.
    match &cli.command {
        Command::Completion(asked) => return complete::script(asked.shell).map(|()| error::OK),
        Command::Man(asked) => return complete::man(asked.dir.as_deref()).map(|()| error::OK),
        Command::Audit(args::host::Audit::Verify { file, key }) => {
            return audit::verify(file, key.as_deref())
                .and_then(|text| output::print(&text))
                .map(|()| error::OK);
        }
        Command::Net(args::things::Net::Sign(asked)) => return net::sign(asked).map(|()| error::OK),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::System { what: "no runtime", source })?;
    let context = Context::new(&cli.global);
    runtime.block_on(dispatch(&context, cli.command))
}

async fn dispatch(context: &Context, command: Command) -> Result<u8, Failure> {
    use crate::agent::model::Action;
    match command {
        Command::Ls(asked) => vm::ls(context, &asked).await,
        Command::Show(asked) => vm::show(context, &asked).await,
        Command::Create(asked) => vm::create(context, asked).await,
        Command::Run(asked) => return run::run(context, asked).await,
        Command::Apply(asked) => manifest::apply(context, &asked).await,
        Command::Start(asked) => vm::act(context, &asked, Action::Start, None).await,
        Command::Stop(asked) => vm::act(context, &asked.act, Action::Stop, asked.timeout).await,
        Command::Kill(asked) => vm::destroy(context, &asked, Some(Action::Kill)).await,
        Command::Restart(asked) => vm::restart(context, &asked).await,
        Command::Pause(asked) => vm::act(context, &asked, Action::Pause, None).await,
        Command::Resume(asked) => vm::act(context, &asked, Action::Resume, None).await,
        Command::Reset(asked) => vm::destroy(context, &asked, Some(Action::Reset)).await,
        Command::Rm(asked) => vm::destroy(context, &asked, None).await,
        Command::Console(asked) => console::attach(context, &asked).await,
        Command::Logs(asked) => stream::logs(context, &asked).await,
        Command::Events(asked) => stream::events(context, &asked).await,
        Command::Wait(asked) => vm::wait(context, &asked).await,
        Command::Top(asked) => top::top(context, &asked).await,
        Command::Explain(asked) => vm::explain(context, &asked).await,
        Command::Image(asked) => image::image(context, asked).await,
        Command::Volume(asked) => volume::volume(context, asked).await,
        Command::Net(asked) => net::net(context, asked).await,
        Command::Tenant(asked) => tenant::tenant(context, asked).await,
        Command::Usage(asked) => host::usage(context, &asked).await,
        Command::Audit(asked) => audit::audit(context, asked).await,
        Command::Host(asked) => host::host(context, asked).await,
        Command::Doctor => return host::doctor(context).await,
        Command::Gc(sure) => host::gc(context, sure).await,
        Command::Operation(asked) => host::operation(context, asked).await,
        Command::Query(asked) => host::query(context, &asked).await,
        // Done before there was a context.
        Command::Completion(_) | Command::Man(_) => Ok(()),
    }
    .map(|()| error::OK)
}

/// Reads a file that the user named; `-` is stdin.
fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|source| Failure::File { what: "can't read", path: path.to_owned(), source })
}

/// As [`read_file`], for text.
fn read_text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read_file(path)?).map_err(|error| {
        Failure::usage(format!("{} is no text: {error}", path.display()), "UTF-8 is accepted")
    })
}

/// The path of an image, by name or id.
fn image_path(image: &str) -> String {
    format!("/v1/images/{}", escape(image))
}
