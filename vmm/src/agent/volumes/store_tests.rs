//! Volumes that are created, used, resized, copied and removed.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;
use crate::agent::files::testing::{allocated, nobody_forks, sparse_file, tree};
use crate::host::disk::Disk;

pub(super) const MIB: u64 = 1 << 20;

pub(super) struct Rig {
    pub(super) dir: TempDir,
    pub(super) volumes: Volumes,
}

pub(super) fn key(id: &str) -> VolumeKey {
    VolumeKey::new("acme", id).unwrap()
}

impl Rig {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(&dir.path().join("volumes")).unwrap();
        Self { dir, volumes }
    }

    fn create(&self, id: &str, size_bytes: u64) -> Result<Usage, VolumeError> {
        self.volumes.create(&key(id), size_bytes, Source::Empty, Allocation::Sparse, &Work::new())
    }

    fn resize(&self, id: &str, size_bytes: u64, shrink: Shrink) -> Result<Usage, VolumeError> {
        self.volumes.resize(&key(id), size_bytes, shrink, Allocation::Sparse, &Work::new())
    }

    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("volumes/tenants/acme/{id}.raw"))
    }

    pub(super) fn tree(&self) -> Vec<PathBuf> {
        tree(&self.dir.path().join("volumes"))
    }
}

#[test]
fn a_volume_takes_what_was_written_unless_it_is_to_have_its_blocks_from_the_start() {
    let rig = Rig::new();
    let usage = rig.create("sparse", 64 * MIB).unwrap();
    assert_eq!(usage, Usage { size_bytes: 64 * MIB, allocated_bytes: 0 });
    let work = Work::new();
    let full = key("full");
    let usage = rig.volumes.create(&full, 8 * MIB, Source::Empty, Allocation::Preallocated, &work).unwrap();
    assert_eq!(usage.size_bytes, 8 * MIB);
    assert!(usage.allocated_bytes >= 8 * MIB, "{usage:?}");
    assert_eq!((work.progress().done(), work.progress().total()), (8 * MIB, 8 * MIB));
    let usage =
        rig.volumes.resize(&full, 12 * MIB, Shrink::Refused, Allocation::Preallocated, &work).unwrap();
    assert!(usage.size_bytes == 12 * MIB && usage.allocated_bytes >= 12 * MIB, "{usage:?}");
    assert_eq!(rig.path("full").metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(rig.volumes.list().unwrap(), [full, key("sparse")]);
}

#[test]
fn sizes_and_names_have_bounds() {
    let rig = Rig::new();
    for size_bytes in [0, 511, 513, SIZE_BYTES_MAX + 512, u64::MAX] {
        let error = rig.create("v", size_bytes).unwrap_err();
        assert!(matches!(error, VolumeError::Size { .. }), "{error}");
        assert!(error.to_string().contains(&size_bytes.to_string()), "{error}");
    }
    rig.create("v", 512).unwrap();
    assert!(matches!(rig.resize("v", 513, Shrink::Forced), Err(VolumeError::Size { .. })));
    for name in ["", ".", "..", "a/b", "-a", "a b", "é", "a\0", &"a".repeat(129)] {
        for result in [VolumeKey::new(name, "v"), VolumeKey::new("acme", name)] {
            assert!(matches!(result, Err(VolumeError::Name { .. })), "{name}");
        }
    }
    assert!(VolumeKey::new("acme", &"a".repeat(128)).is_ok());
    assert!(matches!(Volumes::open(Path::new("v")), Err(VolumeError::Store(FileError::Relative(_)))));
}

#[test]
fn an_id_is_one_tenants_and_one_volumes() {
    let rig = Rig::new();
    rig.create("v", MIB).unwrap();
    assert!(matches!(rig.create("v", MIB), Err(VolumeError::Exists(_))));
    let other = VolumeKey::new("other", "v").unwrap();
    rig.volumes.create(&other, 2 * MIB, Source::Empty, Allocation::Sparse, &Work::new()).unwrap();
    assert_eq!(rig.volumes.usage(&key("v")).unwrap().size_bytes, MIB);
    rig.volumes.remove(&other).unwrap();
    assert_eq!(rig.volumes.list().unwrap(), [key("v")]);
    for error in [
        rig.volumes.remove(&other).unwrap_err(),
        rig.volumes.usage(&other).unwrap_err(),
        rig.volumes.open_for_use(&other, true).unwrap_err(),
        rig.volumes.copy(&other, &key("copy"), Allocation::Sparse, &Work::new()).unwrap_err(),
        rig.volumes.resize(&other, MIB, Shrink::Refused, Allocation::Sparse, &Work::new()).unwrap_err(),
    ] {
        assert!(matches!(&error, VolumeError::NotFound(volume) if *volume == other), "{error}");
    }
}

#[test]
fn a_volume_begins_with_its_source_and_keeps_its_holes_and_the_rest_is_zeros() {
    let rig = Rig::new();
    let path = rig.dir.path().join("rootfs");
    let rootfs = sparse_file(&path, 20 * MIB, &[0, 10 * MIB]);
    let from = Source::File(&rootfs, &path);
    for (id, allocation) in [("sparse", Allocation::Sparse), ("full", Allocation::Preallocated)] {
        let work = Work::new();
        let usage = rig.volumes.create(&key(id), 24 * MIB, from, allocation, &work).unwrap();
        assert_eq!(work.progress().done(), work.progress().total());
        assert_eq!(usage.allocated_bytes < MIB, allocation == Allocation::Sparse, "{usage:?}");
        let usage =
            rig.volumes.copy(&key(id), &key(&format!("{id}-copy")), Allocation::Sparse, &work).unwrap();
        assert_eq!(usage.size_bytes, 24 * MIB);
        let mut expected = fs::read(&path).unwrap();
        expected.resize(24 << 20, 0);
        for id in [id.to_owned(), format!("{id}-copy")] {
            assert!(fs::read(rig.path(&id)).unwrap() == expected, "{id}");
        }
    }
    assert!(allocated(&rig.path("sparse-copy")) < MIB);
    let error = rig.volumes.create(&key("small"), MIB, from, Allocation::Sparse, &Work::new()).unwrap_err();
    assert!(matches!(error, VolumeError::SmallerThanSource { source_bytes, .. } if source_bytes == 20 * MIB));
}

#[test]
fn a_volume_has_one_writer_or_many_readers_and_whoever_is_sent_the_descriptor_has_the_lock() {
    let _quiet = nobody_forks();
    let rig = Rig::new();
    rig.create("v", MIB).unwrap();
    let in_use = |result: Result<(), VolumeError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, VolumeError::InUse { .. }), "{error}");
    };
    let writer = rig.volumes.open_for_use(&key("v"), false).unwrap();
    // What a VMM does with a descriptor that it was sent.
    let disk = Disk::of(writer.try_clone().unwrap(), &"v", false, None).unwrap();
    drop(writer);
    in_use(rig.volumes.open_for_use(&key("v"), false).map(drop));
    in_use(rig.volumes.open_for_use(&key("v"), true).map(drop));
    in_use(rig.volumes.copy(&key("v"), &key("copy"), Allocation::Sparse, &Work::new()).map(drop));
    in_use(rig.volumes.remove(&key("v")));
    in_use(rig.resize("v", 512, Shrink::Forced).map(drop));
    assert!(Disk::open(&rig.path("v"), true, None).is_err(), "a VMM that opens the path is kept out as well");
    // It grows all the same.
    assert_eq!(rig.resize("v", 2 * MIB, Shrink::Refused).unwrap().size_bytes, 2 * MIB);
    drop(disk);
    let readers = [true; 3].map(|read_only| rig.volumes.open_for_use(&key("v"), read_only).unwrap());
    in_use(rig.volumes.open_for_use(&key("v"), false).map(drop));
    rig.volumes.copy(&key("v"), &key("copy"), Allocation::Sparse, &Work::new()).unwrap();
    assert!(readers[0].write_at(b"x", 0).is_err(), "readers can't write");
    // A copy that has ended has no lock, and none of them needs the writer's.
    drop(readers);
    rig.volumes.remove(&key("v")).unwrap();
}

#[test]
fn growing_keeps_what_is_there_and_shrinking_takes_force() {
    let _quiet = nobody_forks();
    let rig = Rig::new();
    rig.create("v", MIB).unwrap();
    let file = rig.volumes.open_for_use(&key("v"), false).unwrap();
    file.write_all_at(&[7; 1024], 0).unwrap();
    drop(file);
    rig.resize("v", 2 * MIB, Shrink::Refused).unwrap();
    let error = rig.resize("v", 512, Shrink::Refused).unwrap_err();
    let VolumeError::WouldShrink { size_bytes: 512, now_bytes, .. } = error else { panic!("{error}") };
    assert_eq!(now_bytes, 2 * MIB);
    assert_eq!(rig.volumes.usage(&key("v")).unwrap().size_bytes, 2 * MIB);
    assert_eq!(rig.resize("v", 512, Shrink::Forced).unwrap().size_bytes, 512);
    let mut bytes = Vec::new();
    rig.volumes.open_for_use(&key("v"), true).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, [7; 512]);
}

#[test]
fn a_link_in_a_volumes_place_is_not_followed() {
    let rig = Rig::new();
    rig.create("v", MIB).unwrap();
    let outside = rig.dir.path().join("outside");
    fs::write(&outside, [1; 512]).unwrap();
    symlink(&outside, rig.path("link")).unwrap();
    for error in [
        rig.volumes.open_for_use(&key("link"), false).map(drop).unwrap_err(),
        rig.resize("link", MIB, Shrink::Refused).map(drop).unwrap_err(),
        rig.volumes.remove(&key("link")).unwrap_err(),
    ] {
        assert!(matches!(error, VolumeError::File { source: FileError::NotRegular { .. }, .. }), "{error}");
    }
    assert!(matches!(rig.create("link", MIB), Err(VolumeError::Exists(_))));
    assert_eq!(fs::read(outside).unwrap(), [1; 512]);
}

#[test]
fn what_nobody_knows_is_told_and_not_removed_and_what_was_cut_short_is() {
    let rig = Rig::new();
    rig.create("known", MIB).unwrap();
    rig.create("unknown", MIB).unwrap();
    let unfinished = rig.dir.path().join("volumes/tmp/0");
    fs::write(&unfinished, "x").unwrap();
    fs::create_dir(rig.dir.path().join("volumes/tenants/gone")).unwrap();
    let volumes = Volumes::open(&rig.dir.path().join("volumes")).unwrap();
    let leftovers = volumes.leftovers(&|volume| volume.id() == "known").unwrap();
    assert_eq!(leftovers, Leftovers { unfinished: vec![unfinished.clone()], unknown: vec![key("unknown")] });
    // The number that is taken is in nobody's way.
    volumes.create(&key("new"), MIB, Source::Empty, Allocation::Sparse, &Work::new()).unwrap();
    assert_eq!(volumes.gc().unwrap(), [unfinished]);
    assert_eq!(volumes.list().unwrap(), [key("known"), key("new"), key("unknown")]);
    assert!(!rig.dir.path().join("volumes/tenants/gone").exists());
}

#[test]
fn of_many_who_create_a_volume_at_once_one_does() {
    let rig = Rig::new();
    for round in 0..8 {
        let id = format!("v{round}");
        let made = std::thread::scope(|scope| {
            let create = || rig.create(&id, MIB);
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(Result::is_ok).count()
        });
        assert_eq!(made, 1);
        rig.volumes.remove(&key(&id)).unwrap();
    }
    assert_eq!(rig.tree(), Vec::<PathBuf>::new());
}
