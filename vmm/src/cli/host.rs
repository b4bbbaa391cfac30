//! What is about the server as a whole: `yun host`, `doctor`, `gc`, `operation`, `usage`, `query`.

use std::io::Write;

use hyper::Method;

use super::args::Sure;
use super::args::host::{Host as Command, Operation as OperationCommand, Query, Usage};
use super::client::{escape, with_query};
use super::confirm::{Answer, confirm};
use super::error::{self, Failure};
use super::output::{Column, Format, note, print, print_bytes};
use super::signals::Signals;
use super::{Context, operation as work, read_file};
use crate::agent::model::{DoctorReport, GcReport, GcRequest, Host, Operation, Severity};

/// `yun host`.
pub(crate) async fn host(context: &Context, command: Command) -> Result<(), Failure> {
    let client = &context.client;
    let (path, what, sure, waiting) = match command {
        Command::Show => return context.out.one(&client.get::<Host>("/v1/host").await?),
        Command::Undrain => {
            return context.out.one(&client.call::<Host>(Method::POST, "/v1/host/undrain").await?);
        }
        Command::Drain { sure, waiting } => {
            ("/v1/host/drain", "drain this server, which stops its VMs by their policy", sure, waiting)
        }
        Command::Shutdown { sure, waiting } => {
            ("/v1/host/shutdown", "stop all VMs of this server, for it to be switched off", sure, waiting)
        }
    };
    match confirm(sure, what)? {
        Answer::Go => work::begin(context, waiting, client.call(Method::POST, path)).await,
        Answer::DryRun => Ok(()),
    }
}

/// `yun doctor`: its exit code says whether something does not work.
pub(crate) async fn doctor(context: &Context) -> Result<u8, Failure> {
    let report: DoctorReport = context.client.get("/v1/doctor").await?;
    match context.out.format {
        Format::Json | Format::Yaml => context.out.value(&report)?,
        _ => context.out.list(&report.findings)?,
    }
    let bad = report.findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if bad { error::FAILED } else { error::OK })
}

/// `yun gc`.
pub(crate) async fn gc(context: &Context, sure: Sure) -> Result<(), Failure> {
    let ask = GcRequest { dry_run: sure.dry_run };
    if !sure.dry_run {
        confirm(sure, "remove what `yun gc --dry-run` lists")?;
    }
    let report: GcReport = context.client.send(Method::POST, "/v1/gc", &ask).await?;
    match context.out.format {
        Format::Json | Format::Yaml => context.out.value(&report),
        _ => context.out.list(&report.leftovers),
    }
}

/// `yun operation`.
pub(crate) async fn operation(context: &Context, command: OperationCommand) -> Result<(), Failure> {
    let client = &context.client;
    let path = |id: &str| format!("/v1/operations/{}", escape(id));
    match command {
        OperationCommand::Ls => context.out.list(&client.get::<Vec<Operation>>("/v1/operations").await?),
        OperationCommand::Show(asked) => context.out.one(&client.get::<Operation>(&path(&asked.id)).await?),
        OperationCommand::Wait { operation, timeout } => {
            let signals = Signals::catch()?;
            let begun = work::sent(&signals, client.get(&path(&operation.id))).await?;
            let limit = timeout.map(super::args::values::Seconds::duration);
            let ended = work::wait(context, &signals, begun, limit).await?;
            work::show_ended(context, &ended)
        }
        OperationCommand::Cancel(asked) => {
            context.out.one(&client.call::<Operation>(Method::DELETE, &path(&asked.id)).await?)
        }
    }
}

/// `yun usage`.
pub(crate) async fn usage(context: &Context, asked: &Usage) -> Result<(), Failure> {
    let raw = asked.csv || !matches!(context.out.format, Format::Json | Format::Yaml);
    let tenant = asked.vm.as_ref().and_then(|vm| vm.tenant.as_ref()).or(context.tenant.as_ref());
    let path = with_query(
        "/v1/usage",
        &[
            ("tenant", tenant.map(ToString::to_string)),
            ("vm", asked.vm.as_ref().map(|vm| vm.name.to_string())),
            ("from", asked.from.clone()),
            ("to", asked.to.clone()),
            ("format", Some(if raw { "csv" } else { "json" }.to_owned())),
        ],
    );
    let body = context.client.bytes(Method::GET, &path, None).await?;
    match context.out.format {
        _ if asked.csv => print_bytes(&body),
        Format::Json | Format::Yaml => print_body(context, &body),
        Format::Table | Format::Wide | Format::Name => {
            let wide = context.out.format == Format::Wide;
            let (columns, rows) = usage_table(&body, wide).map_err(|error| Failure::Failed {
                message: format!("the usage is no CSV: {error}"),
                hint: None,
            })?;
            let columns: Vec<Column> = columns.iter().map(|title| Column::named(title)).collect();
            print(&context.out.rows(&columns, &rows))
        }
    }
}

/// Columns of the narrow table, as FOCUS calls them.
const USAGE_COLUMNS: &[&str] = &[
    "SubAccountId",
    "ResourceName",
    "ResourceId",
    "SkuId",
    "ChargeDescription",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ChargePeriodStart",
    "ChargePeriodEnd",
];

/// Titles and rows: those columns of [`USAGE_COLUMNS`] that there are, or all.
fn usage_table(body: &[u8], wide: bool) -> Result<(Vec<String>, Vec<Vec<String>>), csv::Error> {
    let mut reader = csv::Reader::from_reader(body);
    let titles: Vec<String> = reader.headers()?.iter().map(str::to_owned).collect();
    let all: Vec<usize> = (0..titles.len()).collect();
    let some: Vec<usize> =
        USAGE_COLUMNS.iter().filter_map(|wanted| titles.iter().position(|title| title == wanted)).collect();
    let shown = if wide || some.is_empty() { all } else { some };
    let pick = |row: &dyn Fn(usize) -> Option<String>| -> Vec<String> {
        shown.iter().map(|place| row(*place).unwrap_or_default()).collect()
    };
    let head = pick(&|place| titles.get(place).cloned());
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record?;
        rows.push(pick(&|place| record.get(place).map(str::to_owned)));
    }
    Ok((head, rows))
}

/// `yun query`.
pub(crate) async fn query(context: &Context, asked: &Query) -> Result<(), Failure> {
    let method = Method::from_bytes(asked.method.to_ascii_uppercase().as_bytes()).map_err(|_| {
        Failure::usage(format!("{:?} is no method", asked.method), "GET, PUT, POST, PATCH, DELETE")
    })?;
    let data = asked.data.as_deref().map(read_file).transpose()?;
    let path = query_path(&asked.path);
    // What has no end is printed as it comes.
    if method == Method::GET && data.is_none() {
        let mut stream = context.client.stream(&path).await?;
        let mut last = b'\n';
        while let Some(bytes) = stream.next().await? {
            print_bytes(&bytes)?;
            last = bytes.last().copied().unwrap_or(last);
        }
        return if last == b'\n' { Ok(()) } else { print("\n") };
    }
    let body = context.client.bytes(method, &path, data).await?;
    print_bytes(&body)?;
    if body.is_empty() || body.ends_with(b"\n") { Ok(()) } else { print("\n") }
}

/// Below `/v1`, unless it says otherwise.
fn query_path(path: &str) -> String {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let first = path.split(['/', '?']).nth(1).unwrap_or_default();
    if matches!(first, "v1" | "metrics") { path } else { format!("/v1{path}") }
}

/// Prints a body that this room does not look into: as it is, or as YAML if that was asked for and it is JSON.
pub(crate) fn print_body(context: &Context, body: &[u8]) -> Result<(), Failure> {
    match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(value) => context.out.value(&value),
        Err(_) => {
            print_bytes(body)?;
            let _ = std::io::stdout().flush();
            if !body.ends_with(b"\n") {
                note("the answer is no JSON");
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_below_v1_unless_they_say_otherwise() {
        for (given, asked) in [
            ("/host", "/v1/host"),
            ("host", "/v1/host"),
            ("/v1/host", "/v1/host"),
            ("/v1?x", "/v1?x"),
            ("/v1x", "/v1/v1x"),
            ("/metrics", "/metrics"),
            ("", "/v1/"),
        ] {
            assert_eq!(query_path(given), asked);
        }
    }

    #[test]
    fn a_usage_table_has_the_columns_that_matter_or_all() {
        let csv = b"BilledCost,ConsumedUnit,ConsumedQuantity,SubAccountId\n0,vcpu-ns,\"1,5\",acme\n";
        let (head, rows) = usage_table(csv, false).unwrap();
        assert_eq!(head, ["SubAccountId", "ConsumedQuantity", "ConsumedUnit"]);
        assert_eq!(rows, [["acme", "1,5", "vcpu-ns"]]);
        assert_eq!(usage_table(csv, true).unwrap().0.len(), 4);
        assert_eq!(usage_table(b"x,y\n1,2\n", false).unwrap().0, ["x", "y"]);
        assert!(usage_table(b"x,y\n1\n", false).is_err());
        assert!(usage_table(b"", false).unwrap().1.is_empty());
    }
}
