//! `yun tenant`.

use std::fs;
use std::path::Path;

use hyper::Method;

use super::Context;
use super::args::things::{QuotaFlags, Tenant as Command, Whom};
use super::confirm::{Answer, confirm};
use super::error::Failure;
use crate::agent::model::{Access, Name, Quota, Role, Tenant, TenantSpec};

/// `yun tenant`.
pub(crate) async fn tenant(context: &Context, command: Command) -> Result<(), Failure> {
    let client = &context.client;
    match command {
        Command::Ls => context.out.list(&client.get::<Vec<Tenant>>("/v1/tenants").await?),
        Command::Show(asked) => context.out.one(&client.get::<Tenant>(&path(&asked.name)).await?),
        Command::Create { tenant, quota, egress } => {
            let mut spec = present(context, &tenant.name).await?.unwrap_or_default();
            set(&mut spec.quota, quota);
            spec.egress = egress.unwrap_or(spec.egress);
            put(context, &tenant.name, &spec).await
        }
        Command::Rm { tenant, sure } => {
            if confirm(sure, &format!("remove tenant {}", tenant.name))? == Answer::Go {
                client.bytes(Method::DELETE, &path(&tenant.name), None).await?;
            }
            Ok(())
        }
        Command::Grant { tenant, whom, role } => {
            let mut spec = existing(context, &tenant.name).await?;
            grant(&mut spec.access, access(&whom, role)?);
            put(context, &tenant.name, &spec).await
        }
        Command::Revoke { tenant, whom } => {
            let mut spec = existing(context, &tenant.name).await?;
            let gone = access(&whom, Role::Read)?;
            let before = spec.access.len();
            spec.access.retain(|access| !same_one(access, &gone));
            if spec.access.len() == before {
                let message = format!("tenant {} is not granted to them", tenant.name);
                let hint = Some(format!("yun tenant show {} --format json", tenant.name));
                return Err(Failure::Failed { message, hint });
            }
            put(context, &tenant.name, &spec).await
        }
        Command::Quota { tenant, quota } => {
            let mut spec = existing(context, &tenant.name).await?;
            let before = spec.quota;
            set(&mut spec.quota, quota);
            if before == spec.quota {
                return context.out.one(&client.get::<Tenant>(&path(&tenant.name)).await?);
            }
            put(context, &tenant.name, &spec).await
        }
    }
}

fn path(tenant: &Name) -> String {
    format!("/v1/tenants/{tenant}")
}

async fn present(context: &Context, tenant: &Name) -> Result<Option<TenantSpec>, Failure> {
    let found = context.client.find::<Tenant>(&path(tenant)).await?;
    Ok(found.map(TenantSpec::from))
}

async fn existing(context: &Context, tenant: &Name) -> Result<TenantSpec, Failure> {
    Ok(context.client.get::<Tenant>(&path(tenant)).await?.into())
}

async fn put(context: &Context, tenant: &Name, spec: &TenantSpec) -> Result<(), Failure> {
    context.out.one(&context.client.send::<Tenant>(Method::PUT, &path(tenant), spec).await?)
}

/// What is given replaces what was.
fn set(quota: &mut Quota, flags: QuotaFlags) {
    let QuotaFlags { vms, vcpus, memory, disk, interfaces } = flags;
    let replace = |old: &mut Option<u64>, new: Option<Option<u64>>| {
        if let Some(new) = new {
            *old = new;
        }
    };
    replace(&mut quota.vms, vms.map(|limit| limit.0));
    replace(&mut quota.vcpus, vcpus.map(|limit| limit.0));
    replace(&mut quota.memory_mib, memory.map(|limit| limit.0));
    replace(&mut quota.disk_mib, disk.map(|limit| limit.0));
    replace(&mut quota.interfaces, interfaces.map(|limit| limit.0));
}

fn grant(access: &mut Vec<Access>, new: Access) {
    access.retain(|old| !same_one(old, &new));
    access.push(new);
}

fn same_one(one: &Access, other: &Access) -> bool {
    (one.uid, one.gid) == (other.uid, other.gid)
}

fn access(whom: &Whom, role: Role) -> Result<Access, Failure> {
    let uid = whom.user.as_deref().map(|user| number(user, "user", Path::new("/etc/passwd"))).transpose()?;
    let gid =
        whom.group.as_deref().map(|group| number(group, "group", Path::new("/etc/group"))).transpose()?;
    Ok(Access { uid, gid, role })
}

/// A number, or the name that has it in the file. (The C library's look-up has no place in a static binary.)
fn number(text: &str, what: &str, file: &Path) -> Result<u32, Failure> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let lines = fs::read_to_string(file).map_err(|source| Failure::File {
        what: "can't read",
        path: file.to_owned(),
        source,
    })?;
    find(&lines, text).ok_or_else(|| {
        let hint = format!("accepted are numbers, and names in {}: `getent` knows others", file.display());
        Failure::usage(format!("there is no {what} {text}"), hint)
    })
}

/// Name, password, number: that is how both files begin.
fn find(lines: &str, name: &str) -> Option<u32> {
    let fields = lines.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields.filter(|fields| fields.first() == Some(&name)).find_map(|fields| fields.get(2)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::values::{Limit, MibLimit};

    #[test]
    fn users_and_groups_are_found_by_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nop:x:1000:1000::/:\nbroken\nodd:x:many:\n";
        assert_eq!((find(passwd, "root"), find(passwd, "op")), (Some(0), Some(1000)));
        for nobody in ["", "o", "broken", "odd", "x"] {
            assert_eq!(find(passwd, nobody), None, "{nobody}");
        }
        assert_eq!(number("47", "user", Path::new("/nowhere")).unwrap(), 47);
        assert_eq!(number("nobody-at-all", "user", Path::new("/etc/passwd")).unwrap_err().exit(), 2);
    }

    #[test]
    fn a_limit_that_is_not_given_stays() {
        let mut quota = Quota { vms: Some(1), vcpus: Some(2), ..Quota::default() };
        let flags = QuotaFlags {
            vms: Some(Limit(None)),
            memory: Some(MibLimit(Some(1024))),
            ..QuotaFlags::default()
        };
        set(&mut quota, flags);
        assert_eq!(quota, Quota { vcpus: Some(2), memory_mib: Some(1024), ..Quota::default() });
    }

    #[test]
    fn who_is_granted_again_has_the_new_role_only() {
        let op = |role| Access { uid: Some(1000), gid: None, role };
        let mut all = vec![op(Role::Read), Access { uid: None, gid: Some(1000), role: Role::Read }];
        grant(&mut all, op(Role::Write));
        assert_eq!(all.len(), 2);
        assert_eq!(all[1], op(Role::Write));
    }
}
