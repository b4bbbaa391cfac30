//! Compiles the allow-lists of `sandbox/seccomp/rules.rs` into BPF, so that a start neither does that nor carries what does:
//! a filter is bytes of the program, which the kernel still translates. Also writes the names of system calls, for the log.
//!
//! A filter looks its call up in a binary tree. The kernel runs each new filter once for every call there is, to learn which
//! it need not ask again, and those with arguments each time: a list would make that most of a start.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;

#[path = "src/sandbox/seccomp/rules.rs"]
#[allow(dead_code)] // the crate has uses for all of it
mod rules;

use rules::{Arg, Kind, OWN_PID, Rule};

/// code, jt, jf and k of `struct sock_filter` (linux/filter.h).
type Instruction = (u32, u8, u8, u32);

/// Loads 32 bits of `struct seccomp_data` (linux/seccomp.h).
fn load(offset: u32) -> Instruction {
    (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// `AUDIT_ARCH_X86_64`, linux/audit.h.
const X86_64: u32 = 0xc000_003e;

fn answer(action: u32) -> Instruction {
    (libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

fn jump_if(test: u32, value: u32, then: u8, otherwise: u8) -> Instruction {
    (libc::BPF_JMP | test | libc::BPF_K, then, otherwise, value)
}

fn skip(count: usize) -> Instruction {
    (libc::BPF_JMP | libc::BPF_JA, 0, 0, u32::try_from(count).expect("a short program"))
}

/// Allows the call if the argument at `place`, of which `mask` counts, is `value`; else goes on behind.
fn allow_if(place: u8, mask: u32, value: u32) -> Vec<Instruction> {
    let mut program = vec![load(ARGUMENTS + 8 * u32::from(place))];
    if mask != u32::MAX {
        program.push((libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask));
    }
    program.extend([jump_if(libc::BPF_JEQ, value, 0, 1), answer(libc::SECCOMP_RET_ALLOW)]);
    program
}

/// What becomes of a call that has these rules.
fn body(rules: &[Rule]) -> Vec<Instruction> {
    if rules.iter().any(|rule| rule.arg == Arg::Any) {
        return vec![answer(libc::SECCOMP_RET_ALLOW)];
    }
    let mut program = Vec::new();
    for rule in rules {
        match rule.arg {
            Arg::Any => unreachable!("dealt with above"),
            Arg::OneOf(place, values) => {
                values.iter().for_each(|value| program.extend(allow_if(place, u32::MAX, *value)));
            }
            Arg::Without(place, bits) => program.extend(allow_if(place, bits, 0)),
            Arg::Ioctl(requests) => {
                requests.iter().for_each(|request| program.extend(allow_if(1, 0xffff, *request)));
            }
            Arg::OwnThread(signals) => {
                for signal in signals {
                    let signal = allow_if(2, u32::MAX, *signal);
                    let len = u8::try_from(signal.len()).expect("three instructions");
                    program.extend([load(ARGUMENTS), jump_if(libc::BPF_JEQ, OWN_PID, 0, len)]);
                    program.extend(signal);
                }
            }
            Arg::NoSuchCall => {
                program.push(answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()));
            }
        }
    }
    program.push(answer(libc::SECCOMP_RET_TRAP));
    program
}

/// Looks the loaded number up in `calls`, which are in order.
fn tree(calls: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    match calls {
        [] => vec![answer(libc::SECCOMP_RET_TRAP)],
        [(number, body)] => {
            let mut program = vec![jump_if(libc::BPF_JEQ, *number, 1, 0), answer(libc::SECCOMP_RET_TRAP)];
            program.extend(body);
            program
        }
        _ => {
            let (low, high) = calls.split_at(calls.len() / 2);
            let low = tree(low);
            // Conditional jumps reach 255 instructions, others anywhere.
            let mut program = vec![jump_if(libc::BPF_JGE, high[0].0, 0, 1), skip(low.len())];
            program.extend(low);
            program.extend(tree(high));
            program
        }
    }
}

fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for rule in rules {
        let of_call = calls.entry(u32::try_from(rule.call).expect("a call's number")).or_default();
        if !of_call.contains(rule) {
            of_call.push(*rule);
        }
    }
    let calls: Vec<_> = calls.into_iter().map(|(number, rules)| (number, body(&rules))).collect();
    // Numbers mean other calls to 32-bit programs. Those of the x32 ABI are larger than any on a list.
    let mut program =
        vec![load(ARCH), jump_if(libc::BPF_JEQ, X86_64, 1, 0), answer(libc::SECCOMP_RET_KILL_PROCESS)];
    program.push(load(NUMBER));
    program.extend(tree(&calls));
    assert!(program.len() <= 4096, "the kernel takes no longer one");
    program
}

fn main() {
    println!("cargo::rerun-if-changed=src/sandbox/seccomp/rules.rs");
    let mut out = String::new();
    for kind in Kind::ALL {
        let program = compile(&kind.rules());
        let name = format!("{kind:?}").to_uppercase();
        let _ = writeln!(out, "static {name}: [Instruction; {}] = [", program.len());
        for (code, jt, jf, k) in program {
            let _ = writeln!(out, "    ({code:#x}, {jt}, {jf}, {k:#x}),");
        }
        let _ = writeln!(out, "];");
    }
    // One text, so that the table needs no relocations: "0:read 1:write ...".
    let call = |call: syscalls::Sysno| format!(" {}:{}", call.id(), call.name());
    let names: String = (0..512).filter_map(syscalls::Sysno::new).map(call).collect();
    let _ = writeln!(out, "static NAMES: &str = {names:?};");
    let dir = env::var_os("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&dir).join("filters.rs"), out).expect("cargo's own directory can be written");
}
