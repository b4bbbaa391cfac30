//! What is wanted of a VM, from flags.

use super::args::values::ValueError;
use super::args::vm::SpecFlags;
use super::error::Failure;
use super::{read_file, read_text};
use crate::agent::model::{Power, VmSpec};

/// As the API has it. Files are read.
pub(crate) fn from_flags(flags: SpecFlags, power: Power) -> Result<VmSpec, Failure> {
    let SpecFlags {
        image,
        vcpus,
        memory,
        kernel_args,
        volume,
        net,
        user_data,
        ssh_keys,
        restart,
        ttl,
        ttl_deletes,
        stop_timeout,
        drain,
    } = flags;
    let Some(image) = image else {
        return Err(Failure::usage("a VM needs an image", "--image NAME; `yun image ls` lists them"));
    };
    let mut keys = Vec::new();
    for file in ssh_keys {
        let text = read_text(&file)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        keys.extend(lines.map(str::to_owned));
    }
    let interfaces: Result<Vec<_>, ValueError> =
        net.into_iter().enumerate().map(|(place, net)| net.at(place)).collect();
    let stop_timeout_seconds = u32::try_from(stop_timeout.0)
        .map_err(|_| Failure::usage("--stop-timeout is too long", "accepted are up to 4294967295 s"))?;
    Ok(VmSpec {
        vcpus,
        memory_mib: memory.0,
        image,
        kernel_args,
        volumes: volume.into_iter().map(|disk| disk.0).collect(),
        interfaces: interfaces.map_err(|error| Failure::usage(error.to_string(), "see --help"))?,
        user_data: match user_data {
            Some(file) => Some(String::from_utf8(read_file(&file)?).map_err(|_| {
                Failure::usage(format!("{} is no text", file.display()), "user data is accepted as UTF-8")
            })?),
            None => None,
        },
        ssh_keys: keys,
        power,
        restart,
        ttl_seconds: ttl.map(|ttl| ttl.0),
        ttl_deletes,
        stop_timeout_seconds,
        drain,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn parse(words: &[&str]) -> Result<VmSpec, Failure> {
        let cli = Cli::try_parse_from(["yun", "run", "acme/web"].iter().chain(words)).unwrap();
        let Command::Run(run) = cli.command else { panic!("not a run") };
        from_flags(run.spec, Power::Running)
    }

    #[test]
    fn flags_that_are_not_given_are_the_defaults_of_the_api() {
        let by_api: VmSpec = serde_json::from_str(r#"{"image": "debian"}"#).unwrap();
        assert_eq!(parse(&["--image", "debian"]).unwrap(), by_api);
        assert!(parse(&[]).unwrap_err().denial().hint.unwrap().contains("--image"));
    }

    #[test]
    fn flags_say_all_that_the_api_knows() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        std::fs::write(&keys, "# mine\nssh-ed25519 AAAA me\n\n").unwrap();
        let spec = parse(&[
            "--image",
            "debian",
            "--vcpus",
            "4",
            "--memory",
            "2G",
            "--volume",
            "data:ro",
            "--volume",
            "root:root",
            "--net",
            "lan:domestic",
            "--net",
            "wan",
            "--ttl",
            "2h",
            "--ttl-deletes",
            "--restart",
            "on_failure",
            "--stop-timeout",
            "1m",
            "--drain",
            "keep",
            "--kernel-args",
            "quiet",
            "--ssh-keys",
            keys.to_str().unwrap(),
        ])
        .unwrap();
        let value = serde_json::to_value(&spec).unwrap();
        assert_eq!(value["memory_mib"], 2048);
        assert_eq!(value["volumes"][0]["read_only"], true);
        assert_eq!(value["interfaces"][1]["name"], "eth1");
        assert_eq!((&value["ttl_seconds"], &value["ttl_deletes"]), (&7200.into(), &true.into()));
        assert_eq!(value["ssh_keys"], serde_json::json!(["ssh-ed25519 AAAA me"]));
        assert_eq!((&value["drain"], &value["restart"]), (&"keep".into(), &"on_failure".into()));
    }
}
