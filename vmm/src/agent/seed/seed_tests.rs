//! The disk is read back with the library that made it, and with the host's own tools where there are any.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use super::*;
use crate::agent::files::testing::output;

fn seed() -> Seed {
    Seed {
        instance_id: "i-1".to_owned(),
        hostname: "web-1.example".to_owned(),
        user_data: Some("#cloud-config\npackages: [nginx]\n".to_owned()),
        network_config: Some("version: 2\n".to_owned()),
        ssh_keys: vec!["ssh-ed25519 AAAA \"quoted\": me".to_owned()],
    }
}

/// Its files, by name.
fn files(path: &Path) -> Vec<(String, String)> {
    let disk = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let file_system = FileSystem::new(disk, FsOptions::new()).unwrap();
    assert_eq!(file_system.volume_label(), "CIDATA");
    assert_eq!(file_system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
    let read = |entry: fatfs::DirEntry<'_, _>| {
        assert_eq!((entry.created().date.day, entry.modified().date.month), (1, 1), "a date that there is");
        let mut text = String::new();
        entry.to_file().read_to_string(&mut text).unwrap();
        (entry.file_name(), text)
    };
    file_system.root_dir().iter().map(|entry| read(entry.unwrap())).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_disk_has_what_the_seed_says_and_only_its_owner_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.img");
    fs::write(dir.path().join("seed.img.part"), "cut short").unwrap();
    write(&path, &seed()).unwrap();
    let files = files(&path);
    let names_on_it: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names_on_it, ["meta-data", "user-data", "network-config"]);
    let meta_data: serde_json::Value = serde_json::from_str(&files[0].1).unwrap();
    assert_eq!(
        meta_data,
        json!({"instance-id": "i-1", "local-hostname": "web-1.example", "public-keys": seed().ssh_keys})
    );
    assert_eq!(files[1].1, seed().user_data.unwrap());
    assert_eq!(files[2].1, seed().network_config.unwrap());
    let metadata = path.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (DISK_BYTES as u64, 0o600));
    assert!(metadata.blocks() * 512 < 100 << 10, "zeros are not written");
    assert_eq!(names(dir.path()), ["seed.img"]);
}

#[test]
fn a_seed_without_user_data_has_some_that_does_nothing_and_no_network_config() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.img");
    write(&path, &Seed { user_data: None, network_config: None, ..seed() }).unwrap();
    let files = files(&path);
    assert_eq!(files.len(), 2);
    assert_eq!(files[1], ("user-data".to_owned(), NO_USER_DATA.to_owned()));
}

#[test]
fn the_same_seed_makes_the_same_bytes_and_another_replaces_them() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    write(&one, &seed()).unwrap();
    write(&two, &seed()).unwrap();
    let bytes = fs::read(&one).unwrap();
    assert!(bytes == fs::read(&two).unwrap());
    write(&two, &Seed { hostname: "web-2".to_owned(), ..seed() }).unwrap();
    assert!(bytes != fs::read(&two).unwrap());
}

#[test]
fn the_most_that_is_accepted_fits_and_one_byte_more_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.img");
    // Quotation marks take two bytes each in JSON.
    let most = Seed {
        user_data: Some("u".repeat(USER_DATA_BYTES_MAX)),
        network_config: Some("n".repeat(NETWORK_CONFIG_BYTES_MAX)),
        ssh_keys: vec!["\"".repeat(SSH_KEYS_BYTES_MAX / SSH_KEYS_MAX); SSH_KEYS_MAX],
        ..seed()
    };
    write(&path, &most).unwrap();
    let files = files(&path);
    assert_eq!((files[1].1.len(), files[2].1.len()), (USER_DATA_BYTES_MAX, NETWORK_CONFIG_BYTES_MAX));
    let before = fs::read(&path).unwrap();
    let more = |field: &str, seed: Seed| {
        let error = write(&path, &seed).unwrap_err();
        assert!(matches!(error, SeedError::TooMuch { field: named, .. } if named == field), "{error}");
    };
    more("user_data", Seed { user_data: Some("u".repeat(USER_DATA_BYTES_MAX + 1)), ..most.clone() });
    let network_config = Some("n".repeat(NETWORK_CONFIG_BYTES_MAX + 1));
    more("network_config", Seed { network_config, ..most.clone() });
    more("ssh_keys", Seed { ssh_keys: vec!["k".to_owned(); SSH_KEYS_MAX + 1], ..most.clone() });
    more("ssh_keys", Seed { ssh_keys: vec!["k".repeat(SSH_KEY_BYTES_MAX); 9], ..most });
    assert!(before == fs::read(&path).unwrap(), "a refused seed changes nothing");
    assert_eq!(names(dir.path()), ["seed.img"]);
}

#[test]
fn fields_that_can_not_be_are_refused_by_name() {
    let field = |field: &str, seed: Seed| match seed.check().unwrap_err() {
        SeedError::Field { field: named, .. } => assert_eq!(named, field),
        other => panic!("{other}"),
    };
    for instance_id in ["", "a b", "a\n", &"i".repeat(129)] {
        field("instance_id", Seed { instance_id: (*instance_id).to_owned(), ..seed() });
    }
    for hostname in ["", "-a", "a-", "a..b", ".a", "a_b", "ä", &"h".repeat(65)] {
        field("hostname", Seed { hostname: (*hostname).to_owned(), ..seed() });
    }
    for key in ["", " ", "a\nb", &"k".repeat(SSH_KEY_BYTES_MAX + 1)] {
        field("ssh_keys", Seed { ssh_keys: vec![(*key).to_owned()], ..seed() });
    }
    let error = write(Path::new("seed.img"), &seed()).unwrap_err();
    assert!(matches!(error, SeedError::File(FileError::Relative(_))), "{error}");
}

/// Says that something is skipped; fails if it must not be.
fn skip(variable: &str, why: &str) {
    let required = std::env::var_os(variable).is_some_and(|value| value == "1");
    assert!(!required, "{variable} is set, and {why}");
    eprintln!("skipped: {why}");
}

#[test]
fn the_hosts_own_tools_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.img");
    write(&path, &seed()).unwrap();
    match output(Command::new("blkid").args(["-p", "-o", "export"]).arg(&path)) {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(said.contains("LABEL=CIDATA") && said.contains("TYPE=vfat"), "{said}{output:?}");
        }
        Err(error) => skip("YUN_REQUIRE_BLKID", &format!("there is no blkid ({error})")),
    }
    // In a mount namespace of its own, which goes with it.
    let script = "mount -o loop,ro -t vfat \"$0\" /mnt || exit 42; cat /mnt/meta-data /mnt/user-data /mnt/network-config || exit 43";
    match output(Command::new("unshare").args(["-m", "sh", "-c", script]).arg(&path)) {
        Ok(output) if output.status.success() => {
            let all: String = seed().files().into_iter().map(|(_, content)| content).collect();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), all);
        }
        Ok(output) if output.status.code() == Some(43) => panic!("{output:?}"),
        other => skip("YUN_REQUIRE_VFAT", &format!("no FAT can be mounted here ({other:?})")),
    }
}
