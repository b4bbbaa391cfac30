//! What a tree consists of, what it refuses, what it leaves. As another user than root only refusals can be tested.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;

use proptest::prelude::*;

use super::*;

/// Whoever the VMM is to be: root may give files away, others keep them.
fn user() -> (Uid, Gid) {
    if root() { (Uid::from_raw(4711), Gid::from_raw(4712)) } else { (Uid::effective(), Gid::effective()) }
}

/// Device nodes are root's to make.
fn root() -> bool {
    Uid::effective().is_root()
}

struct Rig {
    dir: tempfile::TempDir,
    exec: ExecFile,
    id: InstanceId,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmm-under-test");
        fs::write(&path, "#!").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("base")).unwrap();
        Self { exec: ExecFile::open(&path).unwrap(), dir, id: InstanceId::parse("vm-1").unwrap() }
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    fn jail(&self) -> PathBuf {
        self.base().join("vmm-under-test/vm-1")
    }

    fn root(&self) -> PathBuf {
        self.jail().join("root")
    }

    fn make(&self) -> Result<Tree, TreeError> {
        self.make_with(true)
    }

    fn make_with(&self, vhost_net: bool) -> Result<Tree, TreeError> {
        Tree::make(&TreeSpec {
            base: &self.base(),
            exec_file: &self.exec,
            id: &self.id,
            owner: user(),
            api_socket: Path::new("/run/firecracker.socket"),
            vhost_net,
        })
    }

    /// Every path below the base.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut dirs = vec![self.base()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.symlink_metadata().unwrap().is_dir() {
                    dirs.push(path.clone());
                }
                files.push(path.strip_prefix(self.base()).unwrap().to_owned());
            }
        }
        files.sort();
        files
    }

    fn refused(&self) -> String {
        let before = self.files();
        let error = self.make().map(drop).unwrap_err().to_string();
        assert_eq!(self.files(), before, "a refusal leaves everything as it was");
        error
    }
}

#[test]
fn a_tree_has_what_firecrackers_has_and_goes_without_a_trace() {
    if !root() {
        return;
    }
    let rig = Rig::new();
    let mut tree = rig.make().unwrap();
    tree.write_pid_file(4321).unwrap();
    assert_eq!(fs::read_to_string(rig.root().join("vmm-under-test.pid")).unwrap(), "4321");
    for (dir, mode) in [("", 0o1770), ("run", 0o1770), ("dev", 0o750), ("dev/net", 0o750)] {
        let metadata = fs::metadata(rig.root().join(dir)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (0, 4712, mode), "{dir}");
    }
    for (path, numbers) in DEVICES {
        let metadata = fs::metadata(rig.jail().join(path)).unwrap();
        assert!(metadata.file_type().is_char_device());
        assert_eq!(metadata.rdev(), nix::sys::stat::makedev(numbers.0.into(), numbers.1.into()));
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (4711, 4712, 0o600), "{path}");
    }
    let exec = rig.root().join("vmm-under-test");
    assert_eq!(fs::read_to_string(&exec).unwrap(), "#!");
    let metadata = fs::metadata(&exec).unwrap();
    assert_eq!((metadata.uid(), metadata.nlink(), metadata.mode() & 0o7777), (0, 1, 0o555));
    for name in ["firecracker.socket", ".10e1", ".1"] {
        UnixListener::bind(rig.root().join("run").join(name)).unwrap();
    }
    tree.undo(Some(0x10e1));
    assert_eq!(rig.files(), Vec::<PathBuf>::new());
}

#[test]
fn a_jail_has_vhost_net_only_if_it_is_asked_for_even_where_an_earlier_one_left_it() {
    if !root() {
        return;
    }
    let rig = Rig::new();
    let node = rig.root().join("dev/vhost-net");
    // Killed, with its janitor: everything stays.
    drop(rig.make_with(true).unwrap());
    assert!(node.exists());
    let tree = rig.make_with(false).unwrap();
    assert!(!node.exists() && rig.root().join("dev/kvm").exists());
    tree.undo(None);
    assert_eq!(rig.files(), Vec::<PathBuf>::new());
}

#[test]
fn what_is_the_users_stays_and_so_does_its_directory() {
    if !root() {
        return;
    }
    let rig = Rig::new();
    fs::create_dir_all(rig.root().join("run")).unwrap();
    fs::write(rig.root().join("rootfs.ext4"), "precious").unwrap();
    let tree = rig.make().unwrap();
    fs::write(rig.root().join("dev/log"), "the VMM's").unwrap();
    UnixListener::bind(rig.root().join("run/other.socket")).unwrap();
    tree.undo(None);
    let left = ["", "/vm-1", "/vm-1/root", "/vm-1/root/dev", "/vm-1/root/dev/log", "/vm-1/root/rootfs.ext4"];
    let left = left.into_iter().chain(["/vm-1/root/run", "/vm-1/root/run/other.socket"]);
    assert_eq!(
        rig.files(),
        left.map(|path| PathBuf::from(format!("vmm-under-test{path}"))).collect::<Vec<_>>()
    );
    assert_eq!(fs::read_to_string(rig.root().join("rootfs.ext4")).unwrap(), "precious");
}

#[test]
fn a_directory_of_the_users_stays_though_it_is_empty() {
    if !root() {
        return;
    }
    let rig = Rig::new();
    fs::create_dir_all(rig.root().join("dev")).unwrap();
    rig.make().unwrap().undo(None);
    let left =
        ["vmm-under-test", "vmm-under-test/vm-1", "vmm-under-test/vm-1/root", "vmm-under-test/vm-1/root/dev"];
    assert_eq!(rig.files(), left.map(PathBuf::from));
}

#[test]
fn a_tree_that_nobody_cleaned_up_is_reclaimed_and_goes_with_its_directories() {
    if !root() {
        return;
    }
    let rig = Rig::new();
    let mut stale = rig.make().unwrap();
    stale.write_pid_file(1).unwrap();
    let ended = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
    // As if its janitor had been killed, before and after its process was recorded.
    drop(stale);
    let mut again = rig.make().unwrap();
    assert!(!rig.root().join("vmm-under-test.pid").exists());
    again.record(ended).unwrap();
    drop(again);
    let error = rig.make().map(drop).unwrap_err().to_string();
    assert!(error.contains("is in use: process"), "{error}");
    // The power failed: nobody lives, and what the ledger said is lost.
    fs::write(rig.jail().join(lock::NAME), "").unwrap();
    let files = rig.files();
    rig.make().unwrap();
    assert_eq!(rig.files(), files, "everything is reclaimed");
}

#[test]
fn links_in_the_place_of_anything_are_refused_and_nothing_is_touched() {
    let rig = Rig::new();
    let outside = rig.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "precious").unwrap();
    let target = |name: &str| match name {
        "root/vmm-under-test" | "root/vmm-under-test.pid" | "root/dev/kvm" | "jail.lock" => {
            outside.join("precious")
        }
        _ => outside.clone(),
    };
    let names = ["root", "root/run", "root/dev", "root/dev/net", "root/vmm-under-test", "jail.lock"];
    let nodes = ["root/dev/kvm", "root/vmm-under-test.pid"];
    for name in names.iter().chain(nodes.iter().filter(|_| root())) {
        let path = rig.jail().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target(name), &path).unwrap();
        let error = rig.refused();
        assert!(error.contains("is a symbolic link, or one is on the way to it"), "{name}: {error}");
        fs::remove_dir_all(rig.base()).unwrap();
        fs::create_dir(rig.base()).unwrap();
    }
    for above in ["vmm-under-test", "vmm-under-test/vm-1"] {
        let path = rig.base().join(above);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(&outside, &path).unwrap();
        let error = rig.refused();
        assert!(error.contains("symbolic link") || error.contains("open the directory"), "{above}: {error}");
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "precious");
}

#[test]
fn a_hard_link_in_the_place_of_the_exec_file_is_refused() {
    let rig = Rig::new();
    let precious = rig.dir.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    fs::create_dir_all(rig.root()).unwrap();
    fs::hard_link(&precious, rig.root().join("vmm-under-test")).unwrap();
    let error = rig.refused();
    assert!(error.ends_with("root/vmm-under-test is refused: it has 2 hard links, 1 is accepted"), "{error}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
}

#[test]
fn other_things_in_the_place_of_nodes_are_refused() {
    if !root() {
        return;
    }
    let rig = Rig::new();
    fs::create_dir_all(rig.root().join("dev")).unwrap();
    fs::write(rig.root().join("dev/urandom"), "0").unwrap();
    let error = rig.refused();
    assert!(error.ends_with("dev/urandom is refused: it is not the character device 1:9"), "{error}");
}

#[test]
fn a_base_that_others_may_write_to_is_refused_unless_its_sticky_bit_protects_it() {
    let rig = Rig::new();
    fs::set_permissions(rig.base(), Permissions::from_mode(0o777)).unwrap();
    let error = rig.refused();
    assert!(error.contains("has mode 777: accepted is one of user"), "{error}");
    fs::set_permissions(rig.base(), Permissions::from_mode(0o1777)).unwrap();
    if root() {
        rig.make().unwrap().undo(None);
        // In there somebody else may have been first.
        fs::create_dir(rig.base().join("vmm-under-test")).unwrap();
        std::os::unix::fs::chown(rig.base().join("vmm-under-test"), Some(99), None).unwrap();
        let error = rig.refused();
        assert!(error.contains("vmm-under-test belongs to user 99"), "{error}");
    }
}

#[test]
fn two_jails_share_a_directory_and_the_last_to_go_removes_it() {
    if !root() {
        return;
    }
    let mut rig = Rig::new();
    let first = rig.make().unwrap();
    rig.id = InstanceId::parse("vm-2").unwrap();
    let second = rig.make().unwrap();
    first.undo(None);
    assert!(rig.base().join("vmm-under-test/vm-2").exists());
    second.undo(None);
    assert_eq!(rig.files(), Vec::<PathBuf>::new());
    // Unless it is the user's.
    fs::create_dir(rig.base().join("vmm-under-test")).unwrap();
    rig.make().unwrap().undo(None);
    assert_eq!(rig.files(), [PathBuf::from("vmm-under-test")]);
}

#[test]
fn an_exec_file_must_be_a_file_that_can_be_executed_and_has_a_free_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &Path| ExecFile::open(path).map(drop).unwrap_err().to_string();
    assert!(refused(dir.path()).ends_with("is no regular file"));
    assert!(refused(Path::new("/nowhere/vmm")).starts_with("can't find the exec file /nowhere/vmm"));
    for (name, mode, why) in
        [("vmm", 0o644, "is not executable"), ("run", 0o755, "any but `run` and `dev` is accepted")]
    {
        let path = dir.path().join(name);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        assert!(refused(&path).contains(why), "{name}");
    }
    let path = dir.path().join("vmm");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    symlink(&path, dir.path().join("link")).unwrap();
    assert_eq!(ExecFile::open(&dir.path().join("link")).unwrap().name(), "vmm");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever a user puts in the root, or an earlier jail left there, survives a jail or makes it refuse.
    #[test]
    fn nothing_of_the_users_is_ever_lost(names in prop::collection::btree_set("(run|dev|dev/net|image|a/b)/[a-c]", 0..6)) {
        let rig = Rig::new();
        for name in &names {
            let path = rig.root().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
        }
        let before = rig.files();
        if let Ok(tree) = rig.make() {
            tree.undo(None);
        }
        prop_assert_eq!(rig.files(), before);
    }
}
