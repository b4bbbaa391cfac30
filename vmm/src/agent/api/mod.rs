//! HTTP on the agent's socket: who asks, what for, and the answer.
//!
//! All below `/v1`, JSON unless said otherwise; `W` needs the role `write` on the tenant, `R` `read`, `A` an administrator.
//! What someone may not see does not exist for them (404).
//!
//! | request | body | answer | who |
//! |---|---|---|---|
//! | `GET /whoami` | | [`Whoami`](super::model::Whoami) | all |
//! | `GET /openapi.json` | | the OpenAPI document | all |
//! | `GET /host` | | [`Host`](super::model::Host) | all |
//! | `POST /host/drain`, `/host/undrain`, `/host/shutdown` | | [`Operation`](super::model::Operation) (202; undrain: [`Host`](super::model::Host)) | A |
//! | `GET /doctor` | | [`DoctorReport`](super::model::DoctorReport) | A |
//! | `POST /gc` | [`GcRequest`](super::model::GcRequest) | [`GcReport`](super::model::GcReport) | A |
//! | `GET /tenants` | | list of [`Tenant`](super::model::Tenant) | those one may see |
//! | `GET`, `PUT`, `DELETE /tenants/{t}` | [`TenantSpec`](super::model::TenantSpec) | [`Tenant`](super::model::Tenant); 204 | R, A, A |
//! | `GET /tenants/{t}/subnets` | | list of [`Subnet`](super::model::Subnet) | R |
//! | `PUT`, `DELETE /tenants/{t}/subnets/{s}` | [`SubnetSpec`](super::model::SubnetSpec) | [`Subnet`](super::model::Subnet); 204 | A |
//! | `GET /vms` | | list of [`Vm`](super::model::Vm) of all tenants one may see | all |
//! | `GET /stats` | | list of [`VmStats`](super::model::VmStats) | all |
//! | `GET /tenants/{t}/vms` | | list of [`Vm`](super::model::Vm) | R |
//! | `GET /tenants/{t}/vms/{v}` | | [`Vm`](super::model::Vm) | R |
//! | `PUT /tenants/{t}/vms/{v}` | [`VmPut`](super::model::VmPut) | [`Vm`](super::model::Vm): 201 made, 200 changed or the same; `?dry_run=true` only checks | W |
//! | `DELETE /tenants/{t}/vms/{v}` | | [`Operation`](super::model::Operation) (202) | W |
//! | `POST /tenants/{t}/vms/{v}/actions` | [`ActionRequest`](super::model::ActionRequest) | [`Operation`](super::model::Operation) (202) | W |
//! | `GET /tenants/{t}/vms/{v}/stats` | | [`VmStats`](super::model::VmStats) | R |
//! | `GET /tenants/{t}/vms/{v}/logs?source=vmm\|console&tail=N&follow=BOOL` | | text | R |
//! | `GET /tenants/{t}/vms/{v}/console?write=BOOL&history=BYTES` with `Connection: Upgrade`, `Upgrade: yun-console` | | 101, then raw bytes both ways | R; W to write |
//! | `PUT /tenants/{t}/vms/{v}/interfaces/{i}/class` | [`ClassChange`](super::model::ClassChange) | [`Vm`](super::model::Vm) | W, as far as the tenant's `egress` goes |
//! | `GET /tenants/{t}/volumes` | | list of [`Volume`](super::model::Volume) | R |
//! | `GET`, `DELETE /tenants/{t}/volumes/{d}` | | [`Volume`](super::model::Volume); 204 | R, W |
//! | `PUT /tenants/{t}/volumes/{d}` | [`VolumeCreate`](super::model::VolumeCreate) | [`Operation`](super::model::Operation) (202) | W |
//! | `PATCH /tenants/{t}/volumes/{d}` | [`VolumeResize`](super::model::VolumeResize) | [`Operation`](super::model::Operation) (202) | W |
//! | `POST /tenants/{t}/volumes/{d}/attach`, `/detach` | [`AttachRequest`](super::model::AttachRequest), [`DetachRequest`](super::model::DetachRequest) | [`Vm`](super::model::Vm) | W |
//! | `GET /images` | | list of [`Image`](super::model::Image) | all |
//! | `POST /images` | [`ImageImport`](super::model::ImageImport) | [`Operation`](super::model::Operation) (202) | A |
//! | `GET`, `DELETE /images/{id or name}` | | [`Image`](super::model::Image); 204 | all, A |
//! | `POST /images/{id or name}/verify` | | [`Operation`](super::model::Operation) (202) | A |
//! | `GET /operations` | | list of [`Operation`](super::model::Operation) | those of one's tenants |
//! | `GET /operations/{op}` | | [`Operation`](super::model::Operation) | |
//! | `GET /operations/{op}/wait?timeout_seconds=N` | | [`Operation`](super::model::Operation), once it has ended or the time is over | |
//! | `DELETE /operations/{op}` | | [`Operation`](super::model::Operation) (202): it is being cancelled | W |
//! | `GET /events?since=SEQ&tenant=T&follow=BOOL` | | one [`Event`](super::model::Event) a line (`application/x-ndjson`) | those of one's tenants |
//! | `GET /usage?tenant=T&vm=V&from=TIME&to=TIME&format=json\|csv` | | FOCUS rows | R |
//! | `GET /audit?from=SEQ&to=SEQ` | | an export for `yun audit verify`, one record a line | A |
//! | `GET /network/lists` | | the lists in force | all |
//! | `PUT /network/lists/{domestic or denied}` | a signed list | the list in force | A |
//! | `GET /metrics` (not below `/v1`) | | OpenMetrics text | A |
//!
//! Whatever is no success has an [`ErrorBody`](super::model::ErrorBody).

pub mod auth;
mod bill;
mod permit;
mod reply;
mod routes;
mod server;
mod streams;

pub use routes::openapi_document;
pub use server::{Server, listen};
