use super::*;
use rules::Arg;

#[test]
fn each_kind_is_part_of_the_process_and_no_rule_says_nothing() {
    let process = Kind::Process.rules();
    for kind in Kind::ALL {
        for rule in kind.rules() {
            assert!(process.contains(&rule), "{kind:?}: {rule:?}");
            match rule.arg {
                Arg::OneOf(_, values) | Arg::Ioctl(values) | Arg::OwnThread(values) => {
                    assert!(!values.is_empty())
                }
                Arg::Any | Arg::Without(..) | Arg::NoSuchCall => {}
            }
        }
    }
}

#[test]
fn system_calls_have_their_names() {
    assert_eq!(name_of(libc::SYS_execve), Some("execve"));
    assert_eq!(name_of(libc::SYS_read), Some("read"));
    assert_eq!(name_of(100_000), None);
    assert_eq!(name_of(-1), None);
}

#[test]
fn what_runs_programs_or_reaches_other_processes_is_on_no_list() {
    let never = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_kill,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_add_key,
        libc::SYS_keyctl,
        libc::SYS_init_module,
        libc::SYS_userfaultfd,
        libc::SYS_setuid,
    ];
    for kind in Kind::ALL {
        assert!(!kind.rules().iter().any(|rule| never.contains(&rule.call)), "{kind:?}");
    }
}

#[test]
fn terminals_are_asked_in_the_words_of_either_c_library() {
    // TCGETS and TCGETS2 (glibc from 2.42 on); TCSETS and TCSETS2 in pairs as well.
    for pair in [[0x5401, 0x542a], [0x5402, 0x542b]] {
        for kind in [Kind::Process, Kind::Driver] {
            let rules = kind.rules();
            let allows = |request| {
                rules.iter().any(|rule| matches!(rule.arg, Arg::Ioctl(values) if values.contains(&request)))
            };
            assert!(pair.iter().all(|request| allows(*request)), "{kind:?}: {pair:x?}");
        }
    }
}
