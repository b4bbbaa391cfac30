//! Who may do what: a pure function of who asks, for what, and of the tenants' access lists.

use std::collections::BTreeMap;

use axum::http::Method;

use super::super::model::{Denial, DenialCode, Name, Role, Whoami};
use super::super::records::TenantRecord;
use super::streams::console_is_written;
use crate::host::peer::Peer;

/// Someone who asks, for the time of one connection. What they may do with which tenant is looked up with each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// By the kernel's word.
    pub peer: Peer,
    /// Whether everything is theirs to do.
    pub admin: bool,
}

/// Which rule let a request pass, for the audit.
pub type Rule = &'static str;

impl Caller {
    /// Someone; `uids` and `gids` are of administrators.
    #[must_use]
    pub fn new(peer: Peer, uids: &[u32], gids: &[u32]) -> Self {
        let admin = peer.uid == 0
            || uids.contains(&peer.uid)
            || gids.iter().any(|gid| *gid == peer.gid || peer.groups.contains(gid));
        Self { peer, admin }
    }

    /// As it is shown in events and operations.
    #[must_use]
    pub fn requestor(&self) -> String {
        format!("uid:{}", self.peer.uid)
    }

    /// What they may do with a tenant.
    #[must_use]
    pub fn role(&self, tenant: &TenantRecord) -> Option<Role> {
        if self.admin {
            return Some(Role::Write);
        }
        let theirs = tenant.spec.access.iter().filter(|access| {
            access.uid == Some(self.peer.uid)
                || access.gid.is_some_and(|gid| gid == self.peer.gid || self.peer.groups.contains(&gid))
        });
        theirs.map(|access| access.role).max()
    }

    /// Whether they may do nothing with any tenant.
    #[must_use]
    pub fn is_stranger(&self, tenants: &BTreeMap<Name, TenantRecord>) -> bool {
        !self.admin && tenants.values().all(|tenant| self.role(tenant).is_none())
    }

    /// What is shown to them of themselves.
    #[must_use]
    pub fn whoami(&self, tenants: &BTreeMap<Name, TenantRecord>) -> Whoami {
        let mut gids = vec![self.peer.gid];
        gids.extend(self.peer.groups.iter().filter(|gid| **gid != self.peer.gid));
        let roles =
            tenants.iter().filter_map(|(name, tenant)| Some((name.clone(), self.role(tenant)?))).collect();
        Whoami { uid: self.peer.uid, gids, admin: self.admin, tenants: roles }
    }
}

/// The tenant that a path is about.
#[must_use]
pub fn tenant_of(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/tenants/")?.split('/').next().filter(|name| !name.is_empty())
}

/// Whether a request may pass; by which rule.
///
/// # Errors
/// [`DenialCode::Forbidden`]; [`DenialCode::NotFound`] for what the caller may not know of.
pub fn authorize(
    caller: &Caller,
    tenants: &BTreeMap<Name, TenantRecord>,
    method: &Method,
    path: &str,
    query: &str,
) -> Result<Rule, Denial> {
    if caller.admin {
        return Ok("admin");
    }
    if path == "/v1/whoami" {
        return Ok("anybody");
    }
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if let Some(name) = tenant_of(path) {
        let unknown = || Denial::not_found("tenant", name);
        let key = Name::parse(name).map_err(|_| unknown())?;
        let role = tenants.get(&key).and_then(|tenant| caller.role(tenant)).ok_or_else(unknown)?;
        let mut rest = path.split('/').skip(4);
        let (kind, deeper) = (rest.next().unwrap_or(""), rest.next().is_some());
        // The tenant itself and its subnets are an administrator's to change.
        if !reads && (kind.is_empty() || kind == "subnets") {
            return Err(forbidden(caller, "only an administrator changes tenants and subnets"));
        }
        let writes = !reads || (deeper && path.ends_with("/console") && console_is_written(query));
        return match role {
            Role::Write => Ok("tenant.write"),
            Role::Read if !writes => Ok("tenant.read"),
            Role::Read => Err(forbidden(caller, &format!("the role in tenant {name} is read"))),
        };
    }
    if caller.is_stranger(tenants) {
        return Err(forbidden(caller, "no tenant's access list has this user or group"));
    }
    let shared = [
        "/v1/openapi.json",
        "/v1/host",
        "/v1/tenants",
        "/v1/vms",
        "/v1/stats",
        "/v1/images",
        "/v1/events",
        "/v1/usage",
        "/v1/operations",
        "/v1/network/lists",
    ];
    let below = ["/v1/images/", "/v1/operations/"];
    let is_shared = shared.contains(&path) || below.iter().any(|prefix| path.starts_with(prefix));
    // What of it they may see, and which operation is theirs to cancel, is looked at where it is known.
    if is_shared && (reads || (*method == Method::DELETE && path.starts_with("/v1/operations/"))) {
        return Ok("shared");
    }
    Err(forbidden(caller, "only an administrator may do this"))
}

fn forbidden(caller: &Caller, why: &str) -> Denial {
    Denial::new(DenialCode::Forbidden, format!("user {} may not do this: {why}", caller.peer.uid))
        .hint("`yun query GET /v1/whoami` shows what you may do; an administrator can add you to a tenant's access list")
}

#[cfg(test)]
mod tests {
    use super::super::super::model::{Access, TenantSpec};
    use super::*;

    fn caller(uid: u32, groups: &[u32]) -> Caller {
        Caller::new(Peer { pid: 1, uid, gid: uid, groups: groups.to_vec() }, &[42], &[43])
    }

    fn tenants() -> BTreeMap<Name, TenantRecord> {
        let access = vec![
            Access { uid: Some(1000), gid: None, role: Role::Write },
            Access { uid: None, gid: Some(2000), role: Role::Read },
        ];
        let tenant = |access| TenantRecord {
            spec: TenantSpec { access, ..TenantSpec::default() },
            ..TenantRecord::default()
        };
        [("a", tenant(access)), ("b", tenant(Vec::new()))]
            .into_iter()
            .map(|(name, tenant)| (Name::parse(name).unwrap(), tenant))
            .collect()
    }

    #[test]
    fn root_and_administrators_do_everything() {
        for admin in [caller(0, &[]), caller(42, &[]), caller(9, &[43]), caller(43, &[])] {
            assert_eq!(authorize(&admin, &tenants(), &Method::POST, "/v1/gc", ""), Ok("admin"));
        }
        assert!(!caller(44, &[44]).admin);
    }

    #[test]
    fn each_role_does_what_it_may_and_other_tenants_do_not_exist() {
        let (writer, reader, nobody) = (caller(1000, &[]), caller(5, &[2000]), caller(7, &[7]));
        let vm = "/v1/tenants/a/vms/x";
        let console = "/v1/tenants/a/vms/x/console";
        let (get, put, delete, post) = (&Method::GET, &Method::PUT, &Method::DELETE, &Method::POST);
        // Who, method, path, query, and the answer: a rule, or a status.
        type Case<'a> = (&'a Caller, &'a Method, &'a str, &'a str, Result<Rule, u16>);
        let table: &[Case<'_>] = &[
            (&writer, get, vm, "", Ok("tenant.write")),
            (&writer, put, vm, "", Ok("tenant.write")),
            (&reader, get, vm, "", Ok("tenant.read")),
            (&reader, put, vm, "", Err(403)),
            (&reader, get, console, "", Ok("tenant.read")),
            (&reader, get, console, "history=1&write=true", Err(403)),
            (&reader, get, console, "%77rite=tru%65", Err(403)),
            (&reader, get, console, "write=false", Ok("tenant.read")),
            (&writer, get, console, "write=true", Ok("tenant.write")),
            (&writer, get, "/v1/tenants/b/vms", "", Err(404)),
            (&writer, get, "/v1/tenants/nowhere", "", Err(404)),
            (&writer, get, "/v1/tenants/..", "", Err(404)),
            (&writer, get, "/v1/tenants/a", "", Ok("tenant.write")),
            (&writer, put, "/v1/tenants/a", "", Err(403)),
            (&writer, delete, "/v1/tenants/a", "", Err(403)),
            (&writer, put, "/v1/tenants/a/subnets/s", "", Err(403)),
            (&reader, get, "/v1/tenants/a/subnets", "", Ok("tenant.read")),
            (&nobody, get, "/v1/whoami", "", Ok("anybody")),
            (&nobody, get, "/v1/vms", "", Err(403)),
            (&reader, get, "/v1/vms", "", Ok("shared")),
            (&reader, get, "/v1/images/x", "", Ok("shared")),
            (&writer, delete, "/v1/images/x", "", Err(403)),
            (&writer, post, "/v1/images", "", Err(403)),
            (&writer, post, "/v1/images/x/verify", "", Err(403)),
            (&writer, delete, "/v1/operations/op-1", "", Ok("shared")),
            (&writer, get, "/v1/audit", "", Err(403)),
            (&writer, get, "/metrics", "", Err(403)),
            (&writer, post, "/v1/host/drain", "", Err(403)),
            (&writer, put, "/v1/network/lists/domestic", "", Err(403)),
        ];
        for (caller, method, path, query, expected) in table {
            let answer =
                authorize(caller, &tenants(), method, path, query).map_err(|denial| denial.code.status());
            assert_eq!(answer, *expected, "{} {method} {path}?{query}", caller.peer.uid);
        }
    }

    #[test]
    fn the_highest_of_several_roles_counts() {
        assert_eq!(caller(1000, &[2000]).role(&tenants()[&Name::parse("a").unwrap()]), Some(Role::Write));
        let whoami = caller(5, &[2000]).whoami(&tenants());
        assert_eq!(whoami.tenants, [(Name::parse("a").unwrap(), Role::Read)].into());
        assert_eq!((whoami.gids, whoami.admin), (vec![5, 2000], false));
    }
}
