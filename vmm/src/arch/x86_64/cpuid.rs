//! CPUID as the guest sees it: what KVM can give, with this guest's topology and without what it may not use.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// The shape of the guest's one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs, 1 to 32.
    pub vcpus: u8,
    /// Threads per core: 2 with SMT, else 1.
    pub threads_per_core: u8,
}

impl Topology {
    /// Bits of the APIC ID below the core's number.
    fn thread_shift(self) -> u32 {
        u32::from(self.threads_per_core > 1)
    }

    /// Bits of the APIC ID below the socket's number.
    fn socket_shift(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros().max(self.thread_shift())
    }

    fn cores(self) -> u32 {
        u32::from(self.vcpus).div_ceil(u32::from(self.threads_per_core)).max(1)
    }
}

/// What the host's KVM offers beside its CPUID table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Host {
    /// `KVM_CAP_TSC_DEADLINE_TIMER`; the bit itself is never in KVM's table.
    pub tsc_deadline: bool,
    /// `KVM_GET_TSC_KHZ`, where KVM has it.
    pub tsc_khz: Option<u32>,
}

const HYPERVISOR_LEAF: u32 = 0x4000_0000;
const TIMING_LEAF: u32 = 0x4000_0010;

const fn bit(n: u32) -> u32 {
    1 << n
}

fn set_field(register: &mut u32, low: u32, width: u32, value: u32) {
    let mask = ((1u32 << width) - 1) << low;
    *register = *register & !mask | (value << low) & mask;
}

/// KVM's table (`KVM_GET_SUPPORTED_CPUID`) cut down to what any vCPU of this guest may see; the same for all vCPUs.
///
/// Gone are nested virtualization, the performance counters (they would tell a tenant about its neighbours), and
/// MONITOR, which KVM can't give.
#[must_use]
pub fn base(supported: &[kvm_cpuid_entry2], topology: Topology, host: Host) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.to_vec();
    entries.retain(|e| e.function != TIMING_LEAF);
    for e in &mut entries {
        match e.function {
            1 => {
                e.ecx &= !(bit(3) | bit(5) | bit(15)); // MONITOR, VMX, PDCM
                e.ecx |= bit(31); // running under a hypervisor
                if host.tsc_deadline {
                    e.ecx |= bit(24);
                }
                let logical = 1u32 << topology.socket_shift();
                set_field(&mut e.ebx, 16, 8, logical);
                set_field(&mut e.edx, 28, 1, u32::from(topology.vcpus > 1)); // HTT
            }
            // Deterministic cache parameters: L1 and L2 are a core's, what is above the socket's (Intel 0x4, AMD 0x8000001d).
            4 | 0x8000_001d if e.eax & 0x1f != 0 => {
                let level = e.eax >> 5 & 7;
                let shift = if level <= 2 { topology.thread_shift() } else { topology.socket_shift() };
                set_field(&mut e.eax, 14, 12, (1u32 << shift) - 1);
                if e.function == 4 {
                    set_field(
                        &mut e.eax,
                        26,
                        6,
                        (1u32 << (topology.socket_shift() - topology.thread_shift())) - 1,
                    );
                }
            }
            6 => e.ecx &= !bit(3), // no energy bias hints
            0xa | 0x8000_000a | 0x8000_0022 => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0), // PMU, SVM, PMU
            HYPERVISOR_LEAF if host.tsc_khz.is_some() => e.eax = e.eax.max(TIMING_LEAF),
            0x8000_0001 => {
                e.ecx &= !(bit(2) | bit(23) | bit(24) | bit(28)); // SVM and performance counters
                set_field(&mut e.ecx, 1, 1, u32::from(topology.vcpus > 1)); // CmpLegacy
            }
            0x8000_0008 => {
                set_field(&mut e.ecx, 0, 8, u32::from(topology.vcpus.saturating_sub(1)));
                set_field(&mut e.ecx, 12, 4, topology.socket_shift());
            }
            _ => {}
        }
    }
    if let Some(khz) = host.tsc_khz {
        // The timing leaf that hypervisors agreed on: TSC in kHz, bus in kHz.
        entries.push(kvm_cpuid_entry2 { function: TIMING_LEAF, eax: khz, ..Default::default() });
    }
    for function in [0xb, 0x1f] {
        let had = entries.iter().any(|e| e.function == function);
        entries.retain(|e| e.function != function);
        if had || function == 0xb {
            entries.extend(extended_topology(function, topology));
        }
    }
    entries
}

/// The two levels and the end marker of the extended topology leaf; EDX, the x2APIC ID, is each vCPU's own.
fn extended_topology(function: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        ..Default::default()
    };
    [
        level(0, topology.thread_shift(), u32::from(topology.threads_per_core), 1),
        level(1, topology.socket_shift(), u32::from(topology.vcpus), 2),
        level(2, 0, 0, 0),
    ]
}

/// The table of vCPU `id`: [`base`] with that vCPU's APIC ID in it.
///
/// # Errors
/// More entries than KVM takes.
pub fn of_vcpu(
    base: &[kvm_cpuid_entry2],
    topology: Topology,
    id: u8,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let mut entries = base.to_vec();
    let apic_id = u32::from(id);
    for e in &mut entries {
        match e.function {
            1 => set_field(&mut e.ebx, 24, 8, apic_id),
            0xb | 0x1f => e.edx = apic_id,
            0x8000_001e => {
                e.eax = apic_id;
                let threads = u32::from(topology.threads_per_core) - 1;
                e.ebx = (threads << 8) | ((apic_id >> topology.thread_shift()) & 0xff);
                e.ecx = 0;
            }
            _ => {}
        }
    }
    debug_assert!(topology.cores() <= 32);
    CpuId::from_entries(&entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> Vec<kvm_cpuid_entry2> {
        [
            0,
            1,
            4,
            6,
            7,
            0xa,
            0xb,
            HYPERVISOR_LEAF,
            0x4000_0001,
            0x8000_0001,
            0x8000_0008,
            0x8000_000a,
            0x8000_001e,
        ]
        .into_iter()
        .map(|function| kvm_cpuid_entry2 {
            function,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        })
        .collect()
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn no_nested_virtualization_no_counters_no_monitor() {
        let table = base(&supported(), Topology { vcpus: 1, threads_per_core: 1 }, Host::default());
        let leaf1 = find(&table, 1, 0);
        assert_eq!(leaf1.ecx & (bit(3) | bit(5) | bit(15)), 0);
        assert_ne!(leaf1.ecx & bit(31), 0);
        assert_eq!(find(&table, 0x8000_0001, 0).ecx & (bit(2) | bit(23)), 0);
        for function in [0xa, 0x8000_000a] {
            assert_eq!(find(&table, function, 0).eax, 0);
        }
    }

    #[test]
    fn apic_ids_are_unique_and_decode_to_the_topology_for_every_size() {
        for threads_per_core in [1, 2] {
            for vcpus in (1..=32).filter(|n| n % threads_per_core == 0) {
                let topology = Topology { vcpus, threads_per_core };
                let table = base(&supported(), topology, Host::default());
                let mut cores = std::collections::BTreeSet::new();
                for id in 0..vcpus {
                    let own = of_vcpu(&table, topology, id).unwrap();
                    let smt = find(own.as_slice(), 0xb, 0);
                    let core = find(own.as_slice(), 0xb, 1);
                    assert_eq!(smt.edx, u32::from(id));
                    assert_eq!(find(own.as_slice(), 1, 0).ebx >> 24, u32::from(id));
                    assert_eq!(smt.edx >> core.eax, 0, "one socket");
                    cores.insert(smt.edx >> smt.eax);
                }
                assert_eq!(cores.len(), usize::from(vcpus / threads_per_core));
            }
        }
    }

    #[test]
    fn the_tsc_frequency_is_told_where_kvm_has_it() {
        let topology = Topology { vcpus: 2, threads_per_core: 1 };
        let host = Host { tsc_deadline: true, tsc_khz: Some(2_500_000) };
        let table = base(&supported(), topology, host);
        assert_eq!(find(&table, TIMING_LEAF, 0).eax, 2_500_000);
        assert_ne!(find(&table, 1, 0).ecx & bit(24), 0);
    }
}
