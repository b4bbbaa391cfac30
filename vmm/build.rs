//! Compiles the allow-lists of `sandbox/seccomp/rules.rs` into BPF, so that a start neither does it nor carries what does:
//! a filter is bytes of the program. Also writes the names of system calls, for the log.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

#[path = "src/sandbox/seccomp/rules.rs"]
#[allow(dead_code)] // the crate has uses for all of it
mod rules;

use rules::{Arg, Kind, OWN_PID, Rule};

fn condition(place: u8, operator: SeccompCmpOp, value: u32) -> SeccompCondition {
    SeccompCondition::new(place, SeccompCmpArgLen::Dword, operator, value.into())
        .expect("a place from 0 to 5")
}

/// The alternatives of one rule; none for a call that is allowed with any argument.
fn alternatives(rule: &Rule) -> Vec<SeccompRule> {
    let all = |conditions| SeccompRule::new(conditions).expect("at least one condition");
    match rule.arg {
        Arg::Any => vec![],
        Arg::OneOf(place, values) => {
            values.iter().map(|value| all(vec![condition(place, SeccompCmpOp::Eq, *value)])).collect()
        }
        Arg::Without(place, bits) => {
            vec![all(vec![condition(place, SeccompCmpOp::MaskedEq(bits.into()), 0)])]
        }
        Arg::Ioctl(requests) => {
            let low = SeccompCmpOp::MaskedEq(0xffff);
            requests.iter().map(|request| all(vec![condition(1, low.clone(), *request)])).collect()
        }
        Arg::OwnThread(signals) => signals
            .iter()
            .map(|signal| {
                all(vec![condition(0, SeccompCmpOp::Eq, OWN_PID), condition(2, SeccompCmpOp::Eq, *signal)])
            })
            .collect(),
    }
}

fn compile(
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> BpfProgram {
    let filter = SeccompFilter::new(calls, otherwise, then, TargetArch::x86_64).expect("valid rules");
    filter.try_into().expect("a program that is short enough")
}

fn allow_list(rules: &[Rule]) -> BpfProgram {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in rules {
        let known = calls.contains_key(&rule.call);
        let so_far = calls.entry(rule.call).or_default();
        // An empty list means any argument, and stays that.
        if rule.arg == Arg::Any {
            so_far.clear();
        } else if !known || !so_far.is_empty() {
            so_far.extend(
                alternatives(rule).into_iter().filter(|new| !so_far.contains(new)).collect::<Vec<_>>(),
            );
        }
    }
    compile(calls, SeccompAction::Trap, SeccompAction::Allow)
}

fn main() {
    println!("cargo::rerun-if-changed=src/sandbox/seccomp/rules.rs");
    let mut out = String::new();
    let mut program = |name: &str, bpf: &BpfProgram| {
        let _ = writeln!(out, "static {name}: [Instruction; {}] = [", bpf.len());
        for i in bpf {
            let _ = writeln!(out, "    ({:#x}, {}, {}, {:#x}),", i.code, i.jt, i.jf, i.k);
        }
        let _ = writeln!(out, "];");
    };
    for kind in Kind::ALL {
        program(&format!("{kind:?}").to_uppercase(), &allow_list(&kind.rules()));
    }
    let no_such_call = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    program("NO_CLONE3", &compile(clone3, SeccompAction::Allow, no_such_call));

    // One text, so that the table needs no relocations: "0:read 1:write ...".
    let names: String = (0..512)
        .filter_map(syscalls::Sysno::new)
        .map(|call| format!(" {}:{}", call.id(), call.name()))
        .collect();
    let _ = writeln!(out, "static NAMES: &str = {names:?};");
    let dir = env::var_os("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&dir).join("filters.rs"), out).expect("cargo's own directory can be written");
}
