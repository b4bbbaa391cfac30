//! What needs no agent: signing lists, checking exported audit logs.

use std::fs;
use std::process::Command;

use vmm::agent::audit::{
    AuditLog, Decision, Durability, Entry, Options, Who, key_to_hex, load_or_create_key,
};
use vmm::agent::net::list::{SignedList, parse_key};

/// Runs `yun` without a socket: status, standard output, standard error.
fn yun(words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_yun"));
    let output = command.args(words).env("YUN_SOCKET", "/nowhere").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_list_is_signed_by_a_key_that_is_made_once_and_the_agent_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("prefixes"), "# the zone\n203.0.113.0/24  # one\n\n2001:db8::/32\n").unwrap();
    let key = path("zone.key");
    let words = ["net", "sign", "--list", "domestic", "--version", "7", "--key", &key, &path("prefixes")];
    let (status, signed, said) = yun(&words);
    assert_eq!(status, 0, "{said}");
    let public = said.split("signed by ").nth(1).unwrap().split(':').next().unwrap();
    let list = SignedList::parse(signed.as_bytes()).unwrap().verify(&[parse_key(public).unwrap()]).unwrap();
    assert_eq!((list.version(), list.prefixes().len()), (7, 2));
    assert_eq!(yun(&words).1, signed, "the same key signs the same again");
    fs::write(path("prefixes"), "203.0.113.0/24\nnonsense\n").unwrap();
    let (status, _, said) = yun(&words);
    assert!(status == 1 && said.contains("line 2: \"nonsense\""), "{status} {said}");
}

#[test]
fn an_exported_audit_log_is_checked_and_an_edited_one_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let key = load_or_create_key(path("key").as_ref()).unwrap();
    let public = key_to_hex(&key.verifying_key());
    let log = AuditLog::open(path("log").as_ref(), key, Options { file_len_max: 1 << 20 }).unwrap();
    for n in 0..5 {
        let entry = Entry {
            who: Who { uid: n, gid: 0, pid: 1, groups: Vec::new(), name: None },
            tenant: None,
            method: "GET".to_owned(),
            path: "/v1/vms".to_owned(),
            request_sha256: None,
            decision: Decision::Allowed,
            rule: "admin".to_owned(),
            status: 200,
            error: None,
            note: None,
        };
        log.append(entry, Durability::Batched).unwrap();
    }
    let mut exported = Vec::new();
    log.export(1..=log.last_seq(), &mut exported).unwrap();
    fs::write(path("whole"), &exported).unwrap();
    let (status, out, said) = yun(&["audit", "verify", &path("whole")]);
    assert!(status == 0 && out.contains("none edited, removed or moved"), "{out}{said}");
    assert_eq!(yun(&["audit", "verify", &path("whole"), "--key", &public]).0, 0);
    let other = key_to_hex(&load_or_create_key(path("other").as_ref()).unwrap().verifying_key());
    let (status, _, said) = yun(&["audit", "verify", &path("whole"), "--key", &other]);
    assert!(status == 1 && said.contains("is not what the agent wrote"), "{status} {said}");
    assert_eq!(yun(&["audit", "verify", &path("whole"), "--key", "short"]).0, 2);
    let text = String::from_utf8(exported).unwrap();
    fs::write(path("edited"), text.replacen("\"uid\":2", "\"uid\":3", 1)).unwrap();
    let (status, _, said) = yun(&["audit", "verify", &path("edited")]);
    assert!(status == 1 && said.contains("line "), "{status} {said}");
}
