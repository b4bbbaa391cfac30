//! The log of a process that is killed, or that the host lets write no more.

use std::env;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::testing::{Rig, append, entry, export, key};
use super::{AuditLog, Durability, Options, verify};

/// Where the process below is to write, and what it says before each answer.
const VARIABLE: &str = "YUN_TEST_AUDIT_LOG";
const ANSWER: &str = "answer: ";

/// What the two tests run as a process of its own: appends until it is refused twice. Passes at once otherwise.
#[test]
fn a_process_that_appends() {
    let Some(path) = env::var_os(VARIABLE) else { return };
    let log = AuditLog::open(Path::new(&path), key(), Options::default()).unwrap();
    let mut refused = 0;
    while refused < 2 {
        match log.append(entry("/v1/vms"), Durability::Durable) {
            Ok(seq) => println!("\n{ANSWER}{seq}"),
            Err(error) => {
                println!("\n{ANSWER}{error}");
                refused += 1;
            }
        }
    }
}

fn start(rig: &Rig, before: &str) -> (Child, impl Iterator<Item = String>) {
    let name = "agent::audit::kill_tests::a_process_that_appends";
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{before} exec \"$0\" \"$@\"")]);
    command.arg(env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    let mut child = command.env(VARIABLE, rig.path()).stdout(Stdio::piped()).spawn().unwrap();
    let lines: Lines<BufReader<ChildStdout>> = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines.filter_map(|line| line.unwrap().strip_prefix(ANSWER).map(str::to_owned)))
}

#[test]
fn what_was_acknowledged_to_be_durable_is_there_after_a_kill_at_any_time() {
    let rig = Rig::new();
    let mut known = 0;
    for round in 1..=10 {
        let (mut child, answers) = start(&rig, "");
        known = answers.take(round).last().unwrap().parse::<u64>().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let log = rig.open();
        assert!(log.last_seq() >= known, "{} after {known} was acknowledged", log.last_seq());
        verify(&export(&log)[..], None).unwrap();
    }
    assert!(known >= 55, "every round added to the rounds before");
}

#[test]
fn half_a_record_on_a_full_disk_is_taken_back_and_the_log_goes_on_when_there_is_room() {
    let rig = Rig::new();
    // Files of at most 8 times 512 bytes, and an error instead of a signal at the end.
    let (mut child, answers) = start(&rig, "trap '' XFSZ; ulimit -f 8;");
    let answers: Vec<_> = answers.collect();
    assert!(child.wait().unwrap().success());
    let (seqs, refusals) = answers.split_at(answers.len() - 2);
    assert!(seqs.len() > 3, "{seqs:?}");
    let refusal = format!("can't append to {}", rig.path().display());
    assert_eq!(refusals, [refusal.clone(), refusal], "the log was as it was, so the second is as the first");
    let log = rig.open();
    assert_eq!(log.last_seq(), u64::try_from(seqs.len()).unwrap(), "and nothing had to be cut off");
    append(&log, 1);
    verify(&export(&log)[..], None).unwrap();
}
