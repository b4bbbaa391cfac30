//! Tenants and their subnets.

use ipnet::IpNet;

use super::super::clock;
use super::super::core::{Agent, key_of};
use super::super::events::Happened;
use super::super::model::{Denial, DenialCode, Name, Subnet, SubnetSpec, Tenant, TenantSpec};
use super::super::operations::new_id;
use super::super::records::{SubnetRecord, TenantRecord};
use super::super::state::{Key, of_tenant};
use super::super::steps::reached;
use super::super::store::{Batch, Table};

/// Entries of a tenant's access list.
const ACCESS_MAX: usize = 64;
/// Subnets of a tenant's.
const SUBNETS_MAX: usize = 64;

impl Agent {
    /// Makes a tenant, or gives it other limits and users; whether it is new.
    ///
    /// # Errors
    /// [`DenialCode::Invalid`], and what the store says.
    pub async fn put_tenant(
        &self,
        name: &Name,
        spec: TenantSpec,
        requestor: &str,
    ) -> Result<(Tenant, bool), Denial> {
        if spec.access.len() > ACCESS_MAX {
            let text =
                format!("access has {} entries, and at most {ACCESS_MAX} are accepted", spec.access.len());
            return Err(Denial::invalid(text));
        }
        if spec.access.iter().any(|access| access.uid.is_some() == access.gid.is_some()) {
            return Err(Denial::invalid("access: each entry has either a uid or a gid"));
        }
        let _turn = self.admission.lock().await;
        let wide = self.state().wider_than(name, spec.egress);
        if let Some(vm) = wide {
            let text = format!("egress: an interface of VM {vm} has a wider class");
            return Err(Denial::new(DenialCode::InUse, text).hint("narrow that first"));
        }
        let before = self.state().tenants.get(name).cloned();
        let is_new = before.is_none();
        let created_at = before.as_ref().map_or_else(clock::now, |record| record.created_at.clone());
        let id = before.as_ref().map_or_else(|| new_id("tenant"), |record| record.id.clone());
        let after_event = before.as_ref().map_or_else(|| self.events.last(), |record| record.after_event);
        let record = TenantRecord { id, after_event, spec, created_at };
        if before.as_ref() != Some(&record) {
            let mut batch = Batch::new();
            batch.put(Table::Tenants, name.as_str(), &record);
            let happened = Happened {
                kind: if is_new { "tenant.created" } else { "tenant.changed" },
                tenant: Some(name.clone()),
                target: Some(name.to_string()),
                requestor: requestor.to_owned(),
                detail: String::new(),
            };
            self.commit(batch, [happened]).await?;
            self.state().tenants.insert(name.clone(), record);
            reached("tenant.stored");
        }
        Ok((self.state().tenant_view(name)?, is_new))
    }

    /// Removes a tenant that has nothing.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`], [`DenialCode::InUse`].
    pub async fn delete_tenant(
        self: &std::sync::Arc<Self>,
        name: &Name,
        requestor: &str,
    ) -> Result<(), Denial> {
        let _turn = self.admission.lock().await;
        let mut batch = Batch::new();
        {
            let state = self.state();
            state.tenant(name)?;
            let used = state.used_by(name);
            let volumes = of_tenant(&state.volumes, name).count();
            if used.vms > 0 || volumes > 0 {
                let text = format!("tenant {name} has {} VMs and {volumes} volumes", used.vms);
                return Err(Denial::new(DenialCode::InUse, text).hint("remove those first"));
            }
            batch.remove(Table::Tenants, name.as_str());
            for (subnet, _) in of_tenant(&state.subnets, name) {
                batch.remove(Table::Subnets, key_of(&(name.clone(), subnet.clone())));
            }
        }
        let happened = Happened {
            kind: "tenant.deleted",
            tenant: Some(name.clone()),
            target: Some(name.to_string()),
            requestor: requestor.to_owned(),
            detail: String::new(),
        };
        self.commit(batch, [happened]).await?;
        {
            let mut state = self.state();
            state.tenants.remove(name);
            state.subnets.retain(|(owner, _), _| owner != name);
        }
        // Who has the name next has nothing to do with them.
        self.operations.forget_of(name);
        self.subnets_in_force(None).await
    }

    /// Makes a subnet; whether it is new. One that has interfaces stays as it is.
    ///
    /// # Errors
    /// [`DenialCode::Invalid`] if it overlaps another, [`DenialCode::InUse`], [`DenialCode::NotFound`].
    pub async fn put_subnet(
        self: &std::sync::Arc<Self>,
        key: &Key,
        spec: SubnetSpec,
        requestor: &str,
    ) -> Result<(Subnet, bool), Denial> {
        let spec =
            SubnetSpec { ipv4: spec.ipv4.map(|net| net.trunc()), ipv6: spec.ipv6.map(|net| net.trunc()) };
        let _turn = self.admission.lock().await;
        let is_new = {
            let state = self.state();
            state.tenant(&key.0)?;
            let before = state.subnets.get(key);
            if before.is_some_and(|before| before.spec == spec) {
                drop(state);
                return Ok((self.state().subnet_view(key)?, false));
            }
            if before.is_some() && state.subnet_view(key)?.interfaces > 0 {
                let text = format!("subnet {} has interfaces: its prefixes can't change", key.1);
                return Err(Denial::new(DenialCode::InUse, text).hint("make another one"));
            }
            if of_tenant(&state.subnets, &key.0).count() >= SUBNETS_MAX {
                return Err(Denial::invalid(format!("a tenant has at most {SUBNETS_MAX} subnets")));
            }
            let others: Vec<(&Key, &SubnetSpec)> = state
                .subnets
                .iter()
                .filter(|(other, _)| *other != key)
                .map(|(other, record)| (other, &record.spec))
                .collect();
            check_subnet(&spec, &others)?;
            before.is_none()
        };
        self.check_prefixes(key, &spec).await?;
        let record = SubnetRecord { spec };
        self.subnets_in_force(Some((key, &record.spec))).await?;
        let mut batch = Batch::new();
        batch.put(Table::Subnets, key_of(key), &record);
        let happened = Happened {
            kind: "subnet.created",
            tenant: Some(key.0.clone()),
            target: Some(key.1.to_string()),
            requestor: requestor.to_owned(),
            detail: String::new(),
        };
        if let Err(denial) = self.commit(batch, [happened]).await {
            self.subnets_in_force(None).await?;
            return Err(denial);
        }
        self.state().subnets.insert(key.clone(), record);
        Ok((self.state().subnet_view(key)?, is_new))
    }

    /// Removes a subnet without interfaces.
    ///
    /// # Errors
    /// [`DenialCode::NotFound`], [`DenialCode::InUse`].
    pub async fn delete_subnet(
        self: &std::sync::Arc<Self>,
        key: &Key,
        requestor: &str,
    ) -> Result<(), Denial> {
        let _turn = self.admission.lock().await;
        let interfaces = self.state().subnet_view(key)?.interfaces;
        if interfaces > 0 {
            let text = format!("subnet {} has {interfaces} interfaces", key.1);
            return Err(Denial::new(DenialCode::InUse, text).hint("remove those first"));
        }
        let mut batch = Batch::new();
        batch.remove(Table::Subnets, key_of(key));
        let happened = Happened {
            kind: "subnet.deleted",
            tenant: Some(key.0.clone()),
            target: Some(key.1.to_string()),
            requestor: requestor.to_owned(),
            detail: String::new(),
        };
        self.commit(batch, [happened]).await?;
        self.state().subnets.remove(key);
        self.subnets_in_force(None).await
    }
}

fn check_subnet(spec: &SubnetSpec, others: &[(&Key, &SubnetSpec)]) -> Result<(), Denial> {
    if spec.ipv4.is_none() && spec.ipv6.is_none() {
        return Err(Denial::invalid("a subnet has an ipv4 prefix, an ipv6 prefix, or both"));
    }
    if let Some(net) = spec.ipv4.filter(|net| net.prefix_len() > 30 || net.prefix_len() < 8) {
        return Err(Denial::invalid(format!("ipv4 {net}: prefixes of /8 to /30 are accepted")));
    }
    if let Some(net) = spec.ipv6.filter(|net| net.prefix_len() > 120 || net.prefix_len() < 16) {
        return Err(Denial::invalid(format!("ipv6 {net}: prefixes of /16 to /120 are accepted")));
    }
    let nets = |spec: &SubnetSpec| {
        [spec.ipv4.map(IpNet::from), spec.ipv6.map(IpNet::from)].into_iter().flatten().collect::<Vec<_>>()
    };
    for net in nets(spec) {
        for (_, other) in others {
            if let Some(taken) =
                nets(other).into_iter().find(|taken| taken.contains(&net) || net.contains(taken))
            {
                // Whose that is is nobody's business.
                return Err(Denial::new(
                    DenialCode::Exists,
                    format!("{net} overlaps {taken}, which is taken"),
                ));
            }
        }
    }
    Ok(())
}
