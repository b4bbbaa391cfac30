//! Completion with live names, and manual pages.

use std::process::Command;

use serde_json::json;

use super::fake::{Fake, vm};
use super::run;

#[test]
fn a_shell_completes_names_of_vms_that_there_are() {
    let fake = Fake::new();
    fake.json("GET /v1/vms", 200, json!([vm("web", "running"), vm("db", "stopped")]));
    let complete = |words: &[&str], tenant: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_yun"));
        command.arg("--").args(words).env("YUN_COMPLETE", "bash").env("YUN_SOCKET", fake.socket());
        command
            .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
            .env("_CLAP_COMPLETE_COMP_TYPE", "9");
        command.env_remove("YUN_TENANT");
        if let Some(tenant) = tenant {
            command.env("YUN_TENANT", tenant);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(complete(&["yun", "show", "acme/w"], None).trim(), "acme/web");
    assert_eq!(complete(&["yun", "show", "d"], Some("acme")).trim(), "db");
    assert!(complete(&["yun", "ima"], None).contains("image"));
    // No agent, no names, no complaint.
    fake.json("GET /v1/vms", 500, json!(null));
    assert_eq!(complete(&["yun", "show", "acme/"], None).trim(), "");
}

#[test]
fn each_shell_has_a_script_that_it_takes() {
    let fake = Fake::new();
    for shell in ["bash", "zsh", "fish"] {
        let said = run(&fake, &["completion", shell]);
        assert!(said.code == 0 && said.out.contains("YUN_COMPLETE"), "{said:?}");
        let file = fake.dir().join(shell);
        std::fs::write(&file, said.out).unwrap();
        match Command::new(shell).arg("-n").arg(&file).output() {
            Ok(output) => assert!(output.status.success(), "{shell}: {output:?}"),
            Err(_) => eprintln!("skipped: no {shell} here to read its script"),
        }
    }
    assert_eq!(run(&fake, &["completion", "tcsh"]).code, 2);
}

#[test]
fn manual_pages_are_what_man_takes() {
    let fake = Fake::new();
    let dir = fake.dir().join("man1");
    assert_eq!(run(&fake, &["man", dir.to_str().unwrap()]).code, 0);
    assert!(dir.join("yun-volume-attach.1").exists());
    let said = run(&fake, &["man"]);
    assert!(said.out.contains(".TH yun 1"), "{said:?}");
    match Command::new("groff").args(["-man", "-Tutf8", "-ww"]).arg(dir.join("yun.1")).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(_) => eprintln!("skipped: no groff here to read a manual page"),
    }
}
