//! Which request is whose: thin functions between HTTP and the agent, and the document that describes them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::core::{Agent, blocking};
use super::super::model::{
    ActionRequest, AttachRequest, ClassChange, Denial, DenialCode, DetachRequest, DoctorReport, ErrorBody,
    GcReport, GcRequest, Host, Image, ImageImport, Name, Operation, Role, Subnet, SubnetSpec, Tenant,
    TenantSpec, Vm, VmPut, VmStats, Volume, VolumeCreate, VolumeResize, Whoami,
};
use super::super::operations::Op;
use super::super::state::{Key, of_tenant};
use super::auth::Caller;
use super::reply::{At, Body, One, Params, Two};
use super::server::{no_method, nothing, with};
use super::{bill, streams};

type Shared = State<Arc<Agent>>;
type Who = Extension<Caller>;
type Answer<T> = Result<Json<T>, Denial>;

/// VMMs that are asked for their counters at the same time.
const ASKED_AT_ONCE: usize = 32;
/// Longest wait for an operation, in seconds.
const WAIT_MAX: u64 = 3600;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "yund",
        description = "The agent of a server: tenants, VMs, images, volumes, networks, usage, audit. \
                       Over a Unix socket; who may do what comes from SO_PEERCRED. \
                       Every answer that is no success has an ErrorBody."
    ),
    components(schemas(ErrorBody, streams::LogSource))
)]
struct Document;

fn document() -> OpenApiRouter<Arc<Agent>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(whoami))
        .routes(routes!(openapi))
        .routes(routes!(host))
        .routes(routes!(drain))
        .routes(routes!(undrain))
        .routes(routes!(shutdown))
        .routes(routes!(doctor))
        .routes(routes!(gc))
        .routes(routes!(list_tenants))
        .routes(routes!(get_tenant, put_tenant, delete_tenant))
        .routes(routes!(list_subnets))
        .routes(routes!(put_subnet, delete_subnet))
        .routes(routes!(list_all_vms))
        .routes(routes!(list_stats))
        .routes(routes!(list_vms))
        .routes(routes!(get_vm, put_vm, delete_vm))
        .routes(routes!(act))
        .routes(routes!(stats))
        .routes(routes!(set_class))
        .routes(routes!(streams::logs))
        .routes(routes!(streams::console))
        .routes(routes!(list_volumes))
        .routes(routes!(get_volume, put_volume, patch_volume, delete_volume))
        .routes(routes!(attach))
        .routes(routes!(detach))
        .routes(routes!(list_images, import_image))
        .routes(routes!(get_image, delete_image))
        .routes(routes!(verify_image))
        .routes(routes!(list_operations))
        .routes(routes!(get_operation, cancel_operation))
        .routes(routes!(wait_operation))
        .routes(routes!(streams::events))
        .routes(routes!(bill::usage))
        .routes(routes!(audit))
        .routes(routes!(lists))
        .routes(routes!(put_list))
        .routes(routes!(metrics))
}

/// All requests.
pub(super) fn router(agent: Arc<Agent>) -> Router {
    let (router, _) = document().split_for_parts();
    router.fallback(nothing).method_not_allowed_fallback(no_method).with_state(agent)
}

/// The OpenAPI document.
#[must_use]
pub fn openapi_document() -> String {
    let mut text = document().into_openapi().to_pretty_json().expect("the document has string keys only");
    text.push('\n');
    text
}

/// The caller, by the kernel's word.
#[utoipa::path(get, path = "/v1/whoami", tag = "host", responses((status = 200, body = Whoami)))]
async fn whoami(State(agent): Shared, Extension(caller): Who) -> Json<Whoami> {
    Json(caller.whoami(&agent.state().tenants))
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "host", responses((status = 200, body = Object)))]
async fn openapi() -> Response {
    typed("application/json", openapi_document())
}

pub(super) fn typed(kind: &'static str, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The server: capacity, state, VMs.
#[utoipa::path(get, path = "/v1/host", tag = "host", responses((status = 200, body = Host)))]
async fn host(State(agent): Shared) -> Json<Host> {
    Json(agent.host_view())
}

fn accepted(op: &Op) -> Response {
    with(StatusCode::ACCEPTED, &op.view())
}

/// Takes no VMs any more, then stops those that run, by their policy.
#[utoipa::path(post, path = "/v1/host/drain", tag = "host", responses((status = 202, body = Operation)))]
async fn drain(State(agent): Shared, Extension(caller): Who) -> Result<Response, Denial> {
    Ok(accepted(&*agent.drain(false, &caller.requestor()).await?))
}

/// Takes VMs again; those that a drain stopped start.
#[utoipa::path(post, path = "/v1/host/undrain", tag = "host", responses((status = 200, body = Host)))]
async fn undrain(State(agent): Shared, Extension(caller): Who) -> Answer<Host> {
    Ok(Json(agent.undrain(&caller.requestor()).await?))
}

/// Stops all VMs, so that the host can be switched off; after its next boot they start again.
#[utoipa::path(post, path = "/v1/host/shutdown", tag = "host", responses((status = 202, body = Operation)))]
async fn shutdown(State(agent): Shared, Extension(caller): Who) -> Result<Response, Denial> {
    Ok(accepted(&*agent.drain(true, &caller.requestor()).await?))
}

/// Looks whether everything is as it should be.
#[utoipa::path(get, path = "/v1/doctor", tag = "host", responses((status = 200, body = DoctorReport)))]
async fn doctor(State(agent): Shared) -> Answer<DoctorReport> {
    Ok(Json(agent.doctor().await?))
}

/// Lists what belongs to nothing any more, and removes it unless told otherwise.
#[utoipa::path(post, path = "/v1/gc", tag = "host", request_body = GcRequest,
    responses((status = 200, body = GcReport)))]
async fn gc(State(agent): Shared, Body(request): Body<GcRequest>) -> Answer<GcReport> {
    Ok(Json(agent.gc(request.dry_run).await?))
}

/// Tenants that the caller may see.
pub(super) fn visible(agent: &Agent, caller: &Caller) -> Vec<Name> {
    let state = agent.state();
    state
        .tenants
        .iter()
        .filter(|(_, tenant)| caller.role(tenant).is_some())
        .map(|(name, _)| name.clone())
        .collect()
}

/// All tenants that the caller may see.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants", responses((status = 200, body = Vec<Tenant>)))]
async fn list_tenants(State(agent): Shared, Extension(caller): Who) -> Answer<Vec<Tenant>> {
    let names = visible(&agent, &caller);
    let state = agent.state();
    Ok(Json(names.iter().map(|name| state.tenant_view(name)).collect::<Result<_, _>>()?))
}

/// One tenant.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = Name, Path)),
    responses((status = 200, body = Tenant)))]
async fn get_tenant(State(agent): Shared, At(name): One) -> Answer<Tenant> {
    Ok(Json(agent.state().tenant_view(&name)?))
}

fn made<T: serde::Serialize>(is_new: bool, body: &T) -> Response {
    with(if is_new { StatusCode::CREATED } else { StatusCode::OK }, body)
}

/// Makes a tenant, or changes its limits and users.
#[utoipa::path(put, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = Name, Path)),
    request_body = TenantSpec, responses((status = 201, body = Tenant), (status = 200, body = Tenant)))]
async fn put_tenant(
    State(agent): Shared,
    Extension(caller): Who,
    At(name): One,
    Body(spec): Body<TenantSpec>,
) -> Result<Response, Denial> {
    let (tenant, is_new) = agent.put_tenant(&name, spec, &caller.requestor()).await?;
    Ok(made(is_new, &tenant))
}

/// Removes a tenant that has nothing.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = Name, Path)),
    responses((status = 204)))]
async fn delete_tenant(
    State(agent): Shared,
    Extension(caller): Who,
    At(name): One,
) -> Result<StatusCode, Denial> {
    agent.delete_tenant(&name, &caller.requestor()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A tenant's subnets.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/subnets", tag = "networks", params(("tenant" = Name, Path)),
    responses((status = 200, body = Vec<Subnet>)))]
async fn list_subnets(State(agent): Shared, At(tenant): One) -> Answer<Vec<Subnet>> {
    let state = agent.state();
    state.tenant(&tenant)?;
    let keys: Vec<Key> =
        of_tenant(&state.subnets, &tenant).map(|(name, _)| (tenant.clone(), name.clone())).collect();
    Ok(Json(keys.iter().map(|key| state.subnet_view(key)).collect::<Result<_, _>>()?))
}

/// Makes a subnet; one that has interfaces stays as it is.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/subnets/{subnet}", tag = "networks",
    params(("tenant" = Name, Path), ("subnet" = Name, Path)), request_body = SubnetSpec,
    responses((status = 201, body = Subnet), (status = 200, body = Subnet)))]
async fn put_subnet(
    State(agent): Shared,
    Extension(caller): Who,
    At(key): Two,
    Body(spec): Body<SubnetSpec>,
) -> Result<Response, Denial> {
    let (subnet, is_new) = agent.put_subnet(&key, spec, &caller.requestor()).await?;
    Ok(made(is_new, &subnet))
}

/// Removes a subnet without interfaces.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/subnets/{subnet}", tag = "networks",
    params(("tenant" = Name, Path), ("subnet" = Name, Path)), responses((status = 204)))]
async fn delete_subnet(
    State(agent): Shared,
    Extension(caller): Who,
    At(key): Two,
) -> Result<StatusCode, Denial> {
    agent.delete_subnet(&key, &caller.requestor()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// VMs of all tenants that the caller may see.
#[utoipa::path(get, path = "/v1/vms", tag = "vms", responses((status = 200, body = Vec<Vm>)))]
async fn list_all_vms(State(agent): Shared, Extension(caller): Who) -> Json<Vec<Vm>> {
    let names = visible(&agent, &caller);
    let state = agent.state();
    Json(names.iter().flat_map(|name| of_tenant(&state.vms, name)).map(|(_, vm)| vm.view()).collect())
}

/// Counters of all VMs that the caller may see.
#[utoipa::path(get, path = "/v1/stats", tag = "vms", responses((status = 200, body = Vec<VmStats>)))]
async fn list_stats(State(agent): Shared, Extension(caller): Who) -> Json<Vec<VmStats>> {
    let names = visible(&agent, &caller);
    let keys: Vec<Key> = {
        let state = agent.state();
        state.vms.keys().filter(|(tenant, _)| names.contains(tenant)).cloned().collect()
    };
    let stats = keys.into_iter().map(|key| {
        let agent = Arc::clone(&agent);
        async move { agent.stats(&key).await.ok() }
    });
    // One that is gone meanwhile is left out; one that does not answer holds up nobody else.
    let all = stream::iter(stats).buffered(ASKED_AT_ONCE);
    Json(all.filter_map(std::future::ready).collect().await)
}

/// A tenant's VMs.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/vms", tag = "vms", params(("tenant" = Name, Path)),
    responses((status = 200, body = Vec<Vm>)))]
async fn list_vms(State(agent): Shared, At(tenant): One) -> Answer<Vec<Vm>> {
    let state = agent.state();
    state.tenant(&tenant)?;
    Ok(Json(of_tenant(&state.vms, &tenant).map(|(_, vm)| vm.view()).collect()))
}

/// A VM: what is wanted, what is, and why they differ.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/vms/{vm}", tag = "vms",
    params(("tenant" = Name, Path), ("vm" = Name, Path)), responses((status = 200, body = Vm)))]
async fn get_vm(State(agent): Shared, At(key): Two) -> Answer<Vm> {
    Ok(Json(agent.state().vm(&key)?.view()))
}

/// Parameters of `PUT` of a VM.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct PutQuery {
    /// Whether it is only checked.
    dry_run: bool,
}

/// States what is wanted of a VM.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/vms/{vm}", tag = "vms",
    params(("tenant" = Name, Path), ("vm" = Name, Path), PutQuery), request_body = VmPut,
    responses((status = 201, body = Vm), (status = 200, body = Vm)))]
async fn put_vm(
    State(agent): Shared,
    Extension(caller): Who,
    At(key): Two,
    Params(query): Params<PutQuery>,
    Body(put): Body<VmPut>,
) -> Result<Response, Denial> {
    let (vm, is_new) = agent.put_vm(&key, put, query.dry_run, &caller.requestor()).await?;
    Ok(made(is_new && !query.dry_run, &vm))
}

/// Removes a VM; its volumes stay.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/vms/{vm}", tag = "vms",
    params(("tenant" = Name, Path), ("vm" = Name, Path)), responses((status = 202, body = Operation)))]
async fn delete_vm(State(agent): Shared, Extension(caller): Who, At(key): Two) -> Result<Response, Denial> {
    Ok(accepted(&*agent.delete_vm(&key, &caller.requestor()).await?))
}

/// Starts, stops, kills, pauses, resumes or resets a VM.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/vms/{vm}/actions", tag = "vms",
    params(("tenant" = Name, Path), ("vm" = Name, Path)), request_body = ActionRequest,
    responses((status = 202, body = Operation)))]
async fn act(
    State(agent): Shared,
    Extension(caller): Who,
    At(key): Two,
    Body(request): Body<ActionRequest>,
) -> Result<Response, Denial> {
    Ok(accepted(&*agent.act(&key, &request, &caller.requestor()).await?))
}

/// Counters of a VM's present incarnation.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/vms/{vm}/stats", tag = "vms",
    params(("tenant" = Name, Path), ("vm" = Name, Path)), responses((status = 200, body = VmStats)))]
async fn stats(State(agent): Shared, At(key): Two) -> Answer<VmStats> {
    Ok(Json(agent.stats(&key).await?))
}

/// Says where an interface's packets may go from now on.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/vms/{vm}/interfaces/{interface}/class", tag = "networks",
    params(("tenant" = Name, Path), ("vm" = Name, Path), ("interface" = Name, Path)),
    request_body = ClassChange, responses((status = 200, body = Vm)))]
async fn set_class(
    State(agent): Shared,
    Extension(caller): Who,
    At((tenant, vm, interface)): At<(Name, Name, Name)>,
    Body(change): Body<ClassChange>,
) -> Answer<Vm> {
    Ok(Json(agent.set_class(&(tenant, vm), &interface, change.class, &caller.requestor()).await?))
}

/// A tenant's volumes.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/volumes", tag = "volumes", params(("tenant" = Name, Path)),
    responses((status = 200, body = Vec<Volume>)))]
async fn list_volumes(State(agent): Shared, At(tenant): One) -> Answer<Vec<Volume>> {
    let keys: Vec<Key> = {
        let state = agent.state();
        state.tenant(&tenant)?;
        of_tenant(&state.volumes, &tenant).map(|(name, _)| (tenant.clone(), name.clone())).collect()
    };
    let views = blocking(move || keys.iter().map(|key| agent.volume_view(key)).collect());
    Ok(Json(views.await?))
}

/// A volume.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/volumes/{volume}", tag = "volumes",
    params(("tenant" = Name, Path), ("volume" = Name, Path)), responses((status = 200, body = Volume)))]
async fn get_volume(State(agent): Shared, At(key): Two) -> Answer<Volume> {
    Ok(Json(blocking(move || agent.volume_view(&key)).await?))
}

/// Makes a volume.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/volumes/{volume}", tag = "volumes",
    params(("tenant" = Name, Path), ("volume" = Name, Path)), request_body = VolumeCreate,
    responses((status = 202, body = Operation)))]
async fn put_volume(
    State(agent): Shared,
    Extension(caller): Who,
    At(key): Two,
    Body(request): Body<VolumeCreate>,
) -> Result<Response, Denial> {
    Ok(accepted(&*agent.create_volume(&key, request, &caller.requestor()).await?))
}

/// Makes a volume larger, also while VMs run that have it.
#[utoipa::path(patch, path = "/v1/tenants/{tenant}/volumes/{volume}", tag = "volumes",
    params(("tenant" = Name, Path), ("volume" = Name, Path)), request_body = VolumeResize,
    responses((status = 202, body = Operation)))]
async fn patch_volume(
    State(agent): Shared,
    Extension(caller): Who,
    At(key): Two,
    Body(request): Body<VolumeResize>,
) -> Result<Response, Denial> {
    Ok(accepted(&*agent.resize_volume(&key, request.size_mib, &caller.requestor()).await?))
}

/// Removes a volume that no VM has.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/volumes/{volume}", tag = "volumes",
    params(("tenant" = Name, Path), ("volume" = Name, Path)), responses((status = 204)))]
async fn delete_volume(
    State(agent): Shared,
    Extension(caller): Who,
    At(key): Two,
) -> Result<StatusCode, Denial> {
    agent.delete_volume(&key, &caller.requestor()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Adds a volume to a VM's disks: at once if it runs.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/volumes/{volume}/attach", tag = "volumes",
    params(("tenant" = Name, Path), ("volume" = Name, Path)), request_body = AttachRequest,
    responses((status = 200, body = Vm)))]
async fn attach(
    State(agent): Shared,
    Extension(caller): Who,
    At(key): Two,
    Body(request): Body<AttachRequest>,
) -> Answer<Vm> {
    Ok(Json(agent.attach(&key, request, false, &caller.requestor()).await?))
}

/// Takes a volume away from a VM's disks: if it runs, as soon as its guest lets go of it; the VM's operation and reason say so.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/volumes/{volume}/detach", tag = "volumes",
    params(("tenant" = Name, Path), ("volume" = Name, Path)), request_body = DetachRequest,
    responses((status = 200, body = Vm)))]
async fn detach(
    State(agent): Shared,
    Extension(caller): Who,
    At(key): Two,
    Body(request): Body<DetachRequest>,
) -> Answer<Vm> {
    let request = AttachRequest { vm: request.vm, read_only: false };
    Ok(Json(agent.attach(&key, request, true, &caller.requestor()).await?))
}

/// All images.
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = 200, body = Vec<Image>)))]
async fn list_images(State(agent): Shared) -> Answer<Vec<Image>> {
    Ok(Json(blocking(move || agent.image_views()).await?))
}

/// Takes an image in from files of the host.
#[utoipa::path(post, path = "/v1/images", tag = "images", request_body = ImageImport,
    responses((status = 202, body = Operation)))]
async fn import_image(
    State(agent): Shared,
    Extension(caller): Who,
    Body(request): Body<ImageImport>,
) -> Result<Response, Denial> {
    Ok(accepted(&*agent.import_image(request, &caller.requestor())?))
}

/// An image, by its id, the unique beginning of one, or its name.
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images", params(("image" = String, Path)),
    responses((status = 200, body = Image)))]
async fn get_image(State(agent): Shared, At(image): At<String>) -> Answer<Image> {
    Ok(Json(blocking(move || agent.image_view(&image)).await?))
}

/// Removes an image that no VM names.
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images", params(("image" = String, Path)),
    responses((status = 204)))]
async fn delete_image(
    State(agent): Shared,
    Extension(caller): Who,
    At(image): At<String>,
) -> Result<StatusCode, Denial> {
    agent.delete_image(&image, &caller.requestor()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Hashes an image's files again.
#[utoipa::path(post, path = "/v1/images/{image}/verify", tag = "images", params(("image" = String, Path)),
    responses((status = 202, body = Operation)))]
async fn verify_image(
    State(agent): Shared,
    Extension(caller): Who,
    At(image): At<String>,
) -> Result<Response, Denial> {
    Ok(accepted(&*agent.verify_image(&image, &caller.requestor())?))
}

fn may(agent: &Agent, caller: &Caller, op: &Op, role: Role) -> bool {
    let Some(tenant) = &op.about().tenant else { return caller.admin };
    let state = agent.state();
    caller.admin
        || state.tenants.get(tenant).and_then(|tenant| caller.role(tenant)).is_some_and(|has| has >= role)
}

/// Operations on things of tenants that the caller may see.
#[utoipa::path(get, path = "/v1/operations", tag = "operations",
    responses((status = 200, body = Vec<Operation>)))]
async fn list_operations(State(agent): Shared, Extension(caller): Who) -> Json<Vec<Operation>> {
    let all = agent.operations.list();
    Json(all.iter().filter(|op| may(&agent, &caller, op, Role::Read)).map(|op| op.view()).collect())
}

fn operation(agent: &Agent, caller: &Caller, id: &str) -> Result<Arc<Op>, Denial> {
    let op = agent.operations.get(id)?;
    if may(agent, caller, &op, Role::Read) { Ok(op) } else { Err(Denial::not_found("operation", id)) }
}

/// An operation.
#[utoipa::path(get, path = "/v1/operations/{operation}", tag = "operations",
    params(("operation" = String, Path)), responses((status = 200, body = Operation)))]
async fn get_operation(
    State(agent): Shared,
    Extension(caller): Who,
    At(id): At<String>,
) -> Answer<Operation> {
    Ok(Json(operation(&agent, &caller, &id)?.view()))
}

/// Takes an operation back, if that can be.
#[utoipa::path(delete, path = "/v1/operations/{operation}", tag = "operations",
    params(("operation" = String, Path)), responses((status = 202, body = Operation)))]
async fn cancel_operation(
    State(agent): Shared,
    Extension(caller): Who,
    At(id): At<String>,
) -> Result<Response, Denial> {
    let op = operation(&agent, &caller, &id)?;
    if !may(&agent, &caller, &op, Role::Write) {
        return Err(Denial::new(
            DenialCode::Forbidden,
            "this operation is not yours to cancel: your role is read",
        ));
    }
    agent.cancel(&op, &caller.requestor()).await?;
    Ok(accepted(&op))
}

/// Parameters of a wait.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct WaitQuery {
    /// Longest wait, in seconds: 30 if it is missing, 3600 at most.
    timeout_seconds: Option<u64>,
}

/// An operation, once it has ended or the time is over.
#[utoipa::path(get, path = "/v1/operations/{operation}/wait", tag = "operations",
    params(("operation" = String, Path), WaitQuery), responses((status = 200, body = Operation)))]
async fn wait_operation(
    State(agent): Shared,
    Extension(caller): Who,
    At(id): At<String>,
    Params(query): Params<WaitQuery>,
) -> Answer<Operation> {
    let op = operation(&agent, &caller, &id)?;
    let seconds = query.timeout_seconds.unwrap_or(30).min(WAIT_MAX);
    op.wait(std::time::Duration::from_secs(seconds)).await;
    Ok(Json(op.view()))
}

/// Parameters of an export of the audit log.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// Number of the first record; 1 if it is missing.
    from: Option<u64>,
    /// Number of the last; that of the newest, if it is missing.
    to: Option<u64>,
}

/// The audit log, for `yun audit verify`: one record a line, and a signed line at the end.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(AuditQuery),
    responses((status = 200, body = String, content_type = "application/x-ndjson")))]
async fn audit(State(agent): Shared, Params(query): Params<AuditQuery>) -> Result<Response, Denial> {
    let bytes = blocking(move || {
        let mut bytes = Vec::new();
        let last = agent.audit.last_seq();
        let range = query.from.unwrap_or(1)..=query.to.unwrap_or(last).min(last);
        if range.is_empty() {
            return Err(Denial::invalid(format!(
                "from, to: records 1 to {last} are there, the first before the last"
            )));
        }
        let exported = agent.audit.export(range, &mut bytes);
        exported.map_err(|error| Denial::host(crate::sandbox::jail::in_words(&error)))?;
        Ok(bytes)
    })
    .await?;
    Ok(typed("application/x-ndjson", bytes))
}

/// The lists of prefixes in force.
#[utoipa::path(get, path = "/v1/network/lists", tag = "networks", responses((status = 200, body = Object)))]
async fn lists(State(agent): Shared) -> Answer<serde_json::Value> {
    Ok(Json(blocking(move || agent.lists()).await?))
}

/// Puts a newer signed list in force, for all or not at all.
#[utoipa::path(put, path = "/v1/network/lists/{list}", tag = "networks", params(("list" = String, Path)),
    request_body = Object, responses((status = 200, body = Object)))]
async fn put_list(
    State(agent): Shared,
    Extension(caller): Who,
    At(list): At<String>,
    request: Request,
) -> Answer<serde_json::Value> {
    let body = axum::body::to_bytes(request.into_body(), agent.config.body_len_max).await;
    let body = body.map_err(|error| Denial::invalid(error.to_string()))?;
    Ok(Json(agent.put_list(&list, &body, &caller.requestor()).await?))
}

/// OpenMetrics text.
#[utoipa::path(get, path = "/metrics", tag = "host",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
async fn metrics(State(agent): Shared) -> Response {
    typed("application/openmetrics-text; version=1.0.0; charset=utf-8", agent.openmetrics())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_document_is_that_of_the_types() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("yund.openapi.json");
        let checked_in = std::fs::read_to_string(path).unwrap_or_default();
        assert!(checked_in == openapi_document(), "run: yund --openapi > vmm/yund.openapi.json");
    }
}
