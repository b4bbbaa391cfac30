//! `yun net`.

use std::fs;

use hyper::Method;
use ipnet::IpNet;

use super::args::things::{Net as Command, NetList, NetSign};
use super::confirm::{Answer, confirm};
use super::error::Failure;
use super::host::print_body;
use super::output::print_bytes;
use super::{Context, read_file};
use crate::agent::audit::{key_to_hex, load_or_create_key};
use crate::agent::model::{ClassChange, Subnet, SubnetSpec, Vm};
use crate::agent::net::list::{ListKind, PrefixList};
use crate::sandbox::jail::in_words;

/// `yun net`.
pub(crate) async fn net(context: &Context, command: Command) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        Command::Ls => context.out.list(&context.of_tenants::<Subnet>("subnets").await?),
        Command::Create { subnet, ipv4, ipv6 } => {
            let path = context.path("subnets", &subnet)?;
            let made: Subnet = client.send(Method::PUT, &path, &SubnetSpec { ipv4, ipv6 }).await?;
            context.out.one(&made)
        }
        Command::Rm { subnet, sure } => {
            let path = context.path("subnets", &subnet)?;
            if confirm(sure, &format!("remove subnet {}", context.title(&subnet)?))? == Answer::Go {
                client.bytes(Method::DELETE, &path, None).await?;
            }
            Ok(())
        }
        Command::Class { vm, interface, class } => {
            let path = format!("{}/interfaces/{interface}/class", context.path("vms", &vm)?);
            let changed: Vm = client.send(Method::PUT, &path, &ClassChange { class }).await?;
            context.out.one(&changed)
        }
        Command::List(NetList::Show) => {
            print_body(context, &client.bytes(Method::GET, "/v1/network/lists", None).await?)
        }
        Command::List(NetList::Load { list, file }) => {
            let path = format!("/v1/network/lists/{list}");
            print_body(context, &client.bytes(Method::PUT, &path, Some(read_file(&file)?)).await?)
        }
        Command::Sign(asked) => sign(&asked),
    }
}

/// `yun net sign`: needs no agent. The prefixes are one a line; what is behind a `#` is a remark.
///
/// # Errors
/// [`Failure`].
pub(crate) fn sign(asked: &NetSign) -> Result<(), Failure> {
    let failed = |message: String| Failure::Failed { message, hint: None };
    let text = String::from_utf8_lossy(&read_file(&asked.prefixes)?).into_owned();
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    let prefixes = lines
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(at, line)| {
            line.parse::<IpNet>().map_err(|error| failed(format!("line {}: {line:?}: {error}", at + 1)))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let kind = ListKind::ALL.into_iter().find(|kind| kind.name() == asked.list);
    let kind = kind.ok_or_else(|| failed(format!("there is no list {}", asked.list)))?;
    let list = PrefixList::new(kind, asked.version, prefixes).map_err(|error| failed(error.to_string()))?;
    let key = load_or_create_key(&asked.key).map_err(|error| failed(in_words(&error)))?;
    let signed = serde_json::to_vec_pretty(&list.sign(&key)).map_err(|error| failed(error.to_string()))?;
    let signed = [signed, b"\n".to_vec()].concat();
    eprintln!("signed by {}: `yund --list-key` takes that", key_to_hex(&key.verifying_key()));
    match &asked.output {
        None => print_bytes(&signed),
        Some(path) => fs::write(path, signed).map_err(|source| Failure::File {
            what: "can't write",
            path: path.clone(),
            source,
        }),
    }
}
