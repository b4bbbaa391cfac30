//! What a file describes is made so: `yun apply`.

use std::path::Path;

use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::values::Which;
use super::args::vm::Apply;
use super::error::Failure;
use super::output::{Column, Record, note};
use super::{Context, image_path, operation, read_text};
use crate::agent::model::{
    Image, ImageImport, Name, Operation, Subnet, SubnetSpec, Tenant, TenantSpec, Vm, VmPut, VmSpec, Volume,
    VolumeCreate, VolumeResize,
};

/// A document of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Manifest {
    Tenant {
        name: Name,
        #[serde(default)]
        spec: TenantSpec,
    },
    Subnet {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        tenant: Option<Name>,
        name: Name,
        spec: SubnetSpec,
    },
    Image {
        spec: ImageImport,
    },
    Volume {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        tenant: Option<Name>,
        name: Name,
        spec: VolumeCreate,
    },
    Vm {
        #[serde(skip_serializing_if = "Option::is_none", default)]
        tenant: Option<Name>,
        name: Name,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        generation: Option<u64>,
        spec: VmSpec,
    },
}

impl Manifest {
    /// What it describes.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Tenant { .. } => "tenant",
            Self::Subnet { .. } => "subnet",
            Self::Image { .. } => "image",
            Self::Volume { .. } => "volume",
            Self::Vm { .. } => "vm",
        }
    }

    /// What others stand on comes first.
    fn order(&self) -> u8 {
        match self {
            Self::Tenant { .. } => 0,
            Self::Subnet { .. } => 1,
            Self::Image { .. } => 2,
            Self::Volume { .. } => 3,
            Self::Vm { .. } => 4,
        }
    }
}

/// The documents of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<Manifest>, Failure> {
    parse(&read_text(path)?)
        .map_err(|(message, hint)| Failure::usage(format!("{}: {message}", path.display()), hint))
}

/// YAML, of which JSON is a part. The error is a message and a hint.
fn parse(text: &str) -> Result<Vec<Manifest>, (String, &'static str)> {
    const HINT: &str = "a document has kind, tenant, name and spec: see `yun apply --help`";
    let mut manifests = Vec::new();
    for (place, document) in serde_norway::Deserializer::from_str(text).enumerate() {
        let wrong = |error: String| (format!("document {}: {error}", place + 1), HINT);
        // Aliases can make a small file a huge value; serde_norway bounds how often they are repeated.
        let mut value = Value::deserialize(document).map_err(|error| wrong(error.to_string()))?;
        match &mut value {
            // Nothing between two marks.
            Value::Null => continue,
            Value::Object(fields) => {
                fields.entry("kind").or_insert_with(|| "vm".into());
            }
            _ => return Err(wrong("it is no mapping".to_owned())),
        }
        manifests.push(serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?);
    }
    if manifests.is_empty() { Err(("it describes nothing".to_owned(), HINT)) } else { Ok(manifests) }
}

/// Prints what makes this VM again.
pub(crate) fn print(context: &Context, vm: Vm) -> Result<(), Failure> {
    let manifest = Manifest::Vm { tenant: Some(vm.tenant), name: vm.name, generation: None, spec: vm.spec };
    if context.out.format == super::output::Format::Json {
        return context.out.value(&manifest);
    }
    let text = serde_norway::to_string(&manifest).map_err(std::io::Error::other)?;
    super::output::print(&text)
}

/// What became of a document.
#[derive(Debug, PartialEq, Serialize)]
struct Outcome {
    kind: &'static str,
    name: String,
    /// `created`, `changed`, `unchanged`.
    result: &'static str,
    /// `field: before -> after`.
    changes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<String>,
}

impl Record for Outcome {
    const COLUMNS: &'static [Column] =
        &[Column::new("KIND"), Column::new("NAME"), Column::new("RESULT"), Column::new("CHANGES")];

    fn cells(&self) -> Vec<String> {
        let changes = self.changes.join(", ");
        vec![self.kind.to_owned(), self.name.clone(), self.result.to_owned(), changes]
    }

    fn key(&self) -> String {
        self.name.clone()
    }
}

/// `yun apply`.
pub(crate) async fn apply(context: &Context, asked: &Apply) -> Result<(), Failure> {
    // All are read before anything is done.
    let mut manifests = Vec::new();
    for file in &asked.file {
        manifests.extend(read(file)?);
    }
    manifests.sort_by_key(Manifest::order);
    let mut outcomes = Vec::new();
    let mut failed = Ok(());
    for manifest in manifests {
        match one(context, asked, manifest).await {
            Ok(outcome) => outcomes.push(outcome),
            // What comes later may stand on it.
            Err(error) => {
                failed = Err(error);
                break;
            }
        }
    }
    context.out.list(&outcomes)?;
    if asked.dry_run {
        note("nothing was changed");
    }
    failed
}

async fn one(context: &Context, asked: &Apply, manifest: Manifest) -> Result<Outcome, Failure> {
    let kind = manifest.kind();
    let client = &context.client;
    let change = |name: String, old: Option<&Value>, new: &Value| {
        let changes = old.map(|old| differences(old, new)).unwrap_or_default();
        let result = match old {
            None => "created",
            Some(_) if changes.is_empty() => "unchanged",
            Some(_) => "changed",
        };
        Outcome { kind, name, result, changes, operation: None }
    };
    match manifest {
        Manifest::Tenant { name, spec } => {
            let path = format!("/v1/tenants/{name}");
            let old = client.find::<Tenant>(&path).await?;
            let old = old.map(|old| json(&TenantSpec::from(old))).transpose()?;
            let outcome = change(name.to_string(), old.as_ref(), &json(&spec)?);
            if outcome.result != "unchanged" && !asked.dry_run {
                client.send::<Tenant>(Method::PUT, &path, &spec).await?;
            }
            Ok(outcome)
        }
        Manifest::Subnet { tenant, name, spec } => {
            let which = Which { tenant, name };
            let path = context.path("subnets", &which)?;
            let list = format!("/v1/tenants/{}/subnets", context.tenant_of(&which)?);
            // With --dry-run there may be no tenant yet.
            let all: Option<Vec<Subnet>> = client.find(&list).await?;
            let old = all.into_iter().flatten().find(|subnet| subnet.name == which.name);
            let old = old.map(|old| json(&old.spec)).transpose()?;
            let outcome = change(context.title(&which)?, old.as_ref(), &json(&spec)?);
            if outcome.result != "unchanged" && !asked.dry_run {
                client.send::<Subnet>(Method::PUT, &path, &spec).await?;
            }
            Ok(outcome)
        }
        Manifest::Image { spec } => {
            // Its content is not compared: that would be to import it.
            let exists = client.find::<Image>(&image_path(spec.name.as_str())).await?.is_some();
            let result = if exists { "unchanged" } else { "created" };
            let name = spec.name.to_string();
            let mut outcome = Outcome { kind, name, result, changes: Vec::new(), operation: None };
            if !exists && !asked.dry_run {
                let begun = client.send(Method::POST, "/v1/images", &spec);
                // Volumes and VMs of the same file need it.
                outcome.operation = Some(operation::complete(context, begun).await?.id);
            }
            Ok(outcome)
        }
        Manifest::Volume { tenant, name, spec } => volume(context, asked, Which { tenant, name }, spec).await,
        Manifest::Vm { tenant, name, generation, spec } => {
            vm(context, asked, &Which { tenant, name }, VmPut { generation, spec }).await
        }
    }
}

async fn volume(
    context: &Context,
    asked: &Apply,
    which: Which,
    spec: VolumeCreate,
) -> Result<Outcome, Failure> {
    let path = context.path("volumes", &which)?;
    let name = context.title(&which)?;
    let old = context.client.find::<Volume>(&path).await?;
    let mut outcome =
        Outcome { kind: "volume", name, result: "unchanged", changes: Vec::new(), operation: None };
    let (method, body) = match (old, spec.size_mib) {
        (None, _) => {
            outcome.result = "created";
            (Method::PUT, json(&spec)?)
        }
        (Some(old), Some(size_mib)) if old.size_mib != size_mib => {
            outcome.result = "changed";
            outcome.changes = vec![format!("size_mib: {} -> {size_mib}", old.size_mib)];
            (Method::PATCH, json(&VolumeResize { size_mib })?)
        }
        (Some(_), _) => return Ok(outcome),
    };
    if !asked.dry_run {
        let begun: Operation =
            operation::complete(context, context.client.send(method, &path, &body)).await?;
        outcome.operation = Some(begun.id);
    }
    Ok(outcome)
}

async fn vm(context: &Context, asked: &Apply, which: &Which, put: VmPut) -> Result<Outcome, Failure> {
    let path = context.path("vms", which)?;
    let old = context.client.find::<Vm>(&path).await?;
    if old
        .as_ref()
        .is_some_and(|old| old.spec == put.spec && put.generation.is_none_or(|g| g == old.generation))
    {
        let (kind, name) = ("vm", context.title(which)?);
        return Ok(Outcome { kind, name, result: "unchanged", changes: Vec::new(), operation: None });
    }
    let old_spec = old.as_ref().map(|old| json(&old.spec)).transpose()?;
    // What is the same in other words (an image by its id) the agent sees.
    let put_path = if asked.dry_run { format!("{path}?dry_run=true") } else { path.clone() };
    let new: Vm = context.client.send(Method::PUT, &put_path, &put).await?;
    let new_spec = json(&new.spec)?;
    let changes = old_spec.as_ref().map(|old| differences(old, &new_spec)).unwrap_or_default();
    let result = match &old {
        None => "created",
        Some(old) if changes.is_empty() && (asked.dry_run || old.generation == new.generation) => "unchanged",
        Some(_) => "changed",
    };
    let mut outcome = Outcome { kind: "vm", name: context.title(which)?, result, changes, operation: None };
    if let Some(id) = new.operation.filter(|_| !asked.dry_run && result != "unchanged") {
        if !asked.waiting.no_wait {
            let path = format!("/v1/operations/{}", super::client::escape(&id));
            operation::complete(context, context.client.get(&path)).await?;
        }
        outcome.operation = Some(id);
    }
    Ok(outcome)
}

fn json(value: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::Failed { message: error.to_string(), hint: None })
}

/// Which fields differ, and how: `quota.vms: 3 -> 5`.
fn differences(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", old, new, &mut found);
    found
}

fn compare(path: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(one), Value::Object(other)) => {
            let added = other.keys().filter(|key| !one.contains_key(*key));
            for key in one.keys().chain(added) {
                let (one, other) =
                    (one.get(key).unwrap_or(&Value::Null), other.get(key).unwrap_or(&Value::Null));
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, one, other, found);
            }
        }
        _ if old == new => {}
        _ => found.push(format!("{path}: {} -> {}", shown(old), shown(new))),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
