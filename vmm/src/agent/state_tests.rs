use super::super::model::{Quota, SubnetSpec, TenantSpec};
use super::*;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn spec(vcpus: u8, memory_mib: u64) -> VmSpec {
    serde_json::from_value(serde_json::json!({ "vcpus": vcpus, "memory_mib": memory_mib, "image": "i" }))
        .unwrap()
}

const ROOMY: Limits = Limits { vcpus: 1000, memory_mib: 1 << 20, disk_mib: 1 << 20 };

fn state(quota: Quota) -> State {
    let mut state = State::default();
    let spec = TenantSpec { quota, ..TenantSpec::default() };
    state.tenants.insert(name("t"), TenantRecord { spec, ..TenantRecord::default() });
    state
}

fn add(state: &mut State, vm: &str, spec: VmSpec) {
    let record = VmRecord {
        tenant: name("t"),
        name: name(vm),
        id: format!("vm-{vm}"),
        generation: 1,
        spec,
        image: String::new(),
        slot: state.free_slot(),
        interfaces: Vec::new(),
        deleting: false,
        created_at: String::new(),
    };
    let live = Live::new("/nowhere".into(), 0);
    state.vms.insert((name("t"), name(vm)), VmEntry { record, runtime: Runtime::default(), live });
}

#[test]
fn a_refusal_says_what_was_asked_what_is_left_and_whose_limit_it_is() {
    let mut state = state(Quota { vms: Some(2), vcpus: Some(4), ..Quota::default() });
    add(&mut state, "a", spec(3, 100));
    let denial = state.admit_vm(&name("t"), None, Taken::default(), &spec(2, 100), ROOMY).unwrap_err();
    assert_eq!(denial.code, DenialCode::QuotaExceeded);
    assert_eq!(denial.message, "2 more vCPUs asked for, 1 left: the quota of tenant t is 4, 3 are used");
    state.admit_vm(&name("t"), None, Taken::default(), &spec(1, 100), ROOMY).unwrap();
    add(&mut state, "b", spec(1, 100));
    let denial = state.admit_vm(&name("t"), None, Taken::default(), &spec(1, 1), ROOMY).unwrap_err();
    assert_eq!(denial.message, "1 more VMs asked for, 0 left: the quota of tenant t is 2, 2 are used");
    let tight = Limits { memory_mib: 250, ..ROOMY };
    let denial =
        state.admit_vm(&name("t"), Some(&spec(1, 100)), Taken::default(), &spec(1, 200), tight).unwrap_err();
    assert_eq!(denial.code, DenialCode::CapacityExceeded);
    assert_eq!(
        denial.message,
        "100 more MiB of memory asked for, 50 left: the host can give 250, 200 are given out"
    );
    assert_eq!(
        state.admit_vm(&name("x"), None, Taken::default(), &spec(1, 1), ROOMY).unwrap_err().code,
        DenialCode::NotFound
    );
}

#[test]
fn a_lowered_quota_refuses_no_less_and_a_stopped_vm_needs_no_capacity() {
    let mut state = state(Quota { vcpus: Some(1), ..Quota::default() });
    add(&mut state, "a", spec(3, 100));
    state.admit_vm(&name("t"), Some(&spec(3, 100)), Taken::default(), &spec(2, 100), ROOMY).unwrap();
    let none = Limits::default();
    let stopped = VmSpec { power: Power::Stopped, ..spec(3, 100) };
    state.admit_vm(&name("t"), Some(&spec(3, 100)), Taken::default(), &stopped, none).unwrap();
    assert!(state.admit_vm(&name("t"), Some(&stopped), Taken::default(), &spec(3, 100), none).is_err());
}

#[test]
fn a_draining_host_starts_nothing_and_takes_what_is_stopped() {
    let mut state = state(Quota::default());
    state.host.state = HostState::Draining;
    let denial = state.admit_vm(&name("t"), None, Taken::default(), &spec(1, 1), ROOMY).unwrap_err();
    assert_eq!(
        (denial.code, denial.message.as_str()),
        (DenialCode::Unavailable, "the host is draining: it starts no VM")
    );
    state
        .admit_vm(&name("t"), None, Taken::default(), &VmSpec { power: Power::Stopped, ..spec(1, 1) }, ROOMY)
        .unwrap();
    assert!(state.holds(DrainPolicy::Stop) && !state.holds(DrainPolicy::Keep));
    state.host.state = HostState::ShuttingDown;
    assert!(state.holds(DrainPolicy::Keep));
}

#[test]
fn slots_are_given_again_the_lowest_first() {
    let mut state = state(Quota::default());
    for vm in ["a", "b", "c"] {
        add(&mut state, vm, spec(1, 1));
    }
    state.vms.remove(&(name("t"), name("b")));
    assert_eq!(state.free_slot(), 1);
    add(&mut state, "d", spec(1, 1));
    assert_eq!(state.free_slot(), 3);
}

#[test]
fn volumes_count_against_quota_and_host() {
    let mut state = state(Quota { disk_mib: Some(100), ..Quota::default() });
    let record = VolumeRecord {
        id: "vol-1".to_owned(),
        size_bytes: 60 * MIB,
        state: VolumeState::Ready,
        preallocated: false,
        created_at: String::new(),
    };
    state.volumes.insert((name("t"), name("v")), record);
    state.admit_disk(&name("t"), 40, ROOMY).unwrap();
    let denial = state.admit_disk(&name("t"), 41, ROOMY).unwrap_err();
    assert!(denial.message.contains("41 more MiB of volumes asked for, 40 left"), "{denial}");
    let denial = state.admit_disk(&name("t"), 10, Limits { disk_mib: 65, ..ROOMY }).unwrap_err();
    assert_eq!(denial.code, DenialCode::CapacityExceeded);
}

/// An incarnation that has this, and an interface of this class.
fn running(state: &mut State, vm: &str, given: Given, class: EgressClass) {
    let interface = InterfaceRecord {
        name: name("eth0"),
        subnet: name("s"),
        tap: "yun-1".to_owned(),
        mac: String::new(),
        ipv4: Some([10, 0, 0, 2].into()),
        ipv6: None,
        class,
    };
    let vm = state.vms.get_mut(&(name("t"), name(vm))).unwrap();
    vm.runtime.phase = Phase::Running;
    (vm.runtime.given, vm.runtime.interfaces) = (Some(given), vec![interface]);
}

#[test]
fn what_runs_counts_as_it_was_started_until_it_ends() {
    let mut state =
        state(Quota { vcpus: Some(4), memory_mib: Some(100), interfaces: Some(1), ..Quota::default() });
    add(&mut state, "a", spec(1, 10));
    let given = Given { vcpus: 3, memory_mib: 90, ..Given::default() };
    running(&mut state, "a", given, EgressClass::Isolated);
    let taken = state.vms[&(name("t"), name("a"))].taken();
    assert_eq!(taken, Taken { vcpus: 3, memory_mib: 90, interfaces: 1 });
    let used = state.used_by(&name("t"));
    assert_eq!((used.vcpus, used.memory_mib, used.interfaces), (3, 90, 1));
    assert_eq!(state.allocated(), Limits { vcpus: 3, memory_mib: 90, disk_mib: 0 });
    // As large as it is it may be again, also on a host that has no more; larger only within the quota.
    let (small, full) = (spec(1, 10), Limits { vcpus: 3, memory_mib: 90, disk_mib: 0 });
    state.admit_vm(&name("t"), Some(&small), taken, &spec(3, 90), full).unwrap();
    let stopped = VmSpec { power: Power::Stopped, ..small.clone() };
    state.admit_vm(&name("t"), Some(&stopped), taken, &spec(3, 90), full).unwrap();
    let denial = state.admit_vm(&name("t"), Some(&small), taken, &spec(5, 10), ROOMY).unwrap_err();
    assert_eq!(denial.message, "2 more vCPUs asked for, 1 left: the quota of tenant t is 4, 3 are used");
    assert!(state.admit_vm(&name("t"), None, Taken::default(), &spec(2, 1), ROOMY).is_err());
    state.vms.get_mut(&(name("t"), name("a"))).unwrap().runtime.phase = Phase::Stopped;
    state.admit_vm(&name("t"), None, Taken::default(), &spec(2, 1), ROOMY).unwrap();
}

#[test]
fn an_interface_that_is_no_more_wanted_is_there_until_its_incarnation_ends() {
    let mut state = state(Quota::default());
    state
        .subnets
        .insert((name("t"), name("s")), SubnetRecord { spec: SubnetSpec { ipv4: None, ipv6: None } });
    add(&mut state, "a", spec(1, 10));
    running(&mut state, "a", Given::default(), EgressClass::International);
    assert_eq!(state.wider_than(&name("t"), EgressClass::Isolated), Some(name("a")));
    assert_eq!(state.wider_than(&name("t"), EgressClass::International), None);
    assert_eq!(state.subnet_view(&(name("t"), name("s"))).unwrap().interfaces, 1);
    let address: IpAddr = [10, 0, 0, 2].into();
    assert_eq!(state.addresses(&name("t"), &name("s"), None).collect::<Vec<_>>(), [address]);
    state.vms.get_mut(&(name("t"), name("a"))).unwrap().runtime.phase = Phase::Stopped;
    assert_eq!(state.wider_than(&name("t"), EgressClass::Isolated), None);
    assert_eq!(state.subnet_view(&(name("t"), name("s"))).unwrap().interfaces, 0);
}
