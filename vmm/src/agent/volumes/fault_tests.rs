//! Copies that are killed, cancelled, run out of space or of source, at each of their steps.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::tests::{MIB, Rig, key};
use super::*;
use crate::agent::files::left_bytes;
use crate::agent::files::testing::{
    FileSystem, allocated, at_step, cancelled_work, child_dir, killed_work, noted_work, run_killed, run_on,
    sparse_file, tree, was_killed,
};

/// With a volume of four pieces to be copied.
fn rig() -> Rig {
    let rig = Rig::new();
    let path = rig.dir.path().join("rootfs");
    let rootfs = sparse_file(&path, 2 * MIB, &[0, MIB]);
    let from = Source::File(&rootfs, &path);
    rig.volumes.create(&key("source"), 2 * MIB, from, Allocation::Sparse, &Work::new()).unwrap();
    rig
}

fn copy(volumes: &Volumes, allocation: Allocation, work: &Work) -> Result<Usage, VolumeError> {
    volumes.copy(&key("source"), &key("copy"), allocation, work)
}

/// The steps of a copy.
fn steps(allocation: Allocation) -> Vec<&'static str> {
    let (work, steps) = noted_work();
    copy(&rig().volumes, allocation, &work).unwrap();
    let steps = steps.lock().unwrap().clone();
    assert_eq!(steps.iter().filter(|step| **step == "copy a piece").count(), 4, "{steps:?}");
    steps
}

fn same(rig: &Rig) -> bool {
    std::fs::read(rig.path("copy")).unwrap() == std::fs::read(rig.path("source")).unwrap()
}

#[test]
#[ignore = "run by another test, in a process that is killed"]
fn copies_until_it_is_killed() {
    if let Some(dir) = child_dir() {
        let volumes = Volumes::open(&dir.join("volumes")).unwrap();
        copy(&volumes, Allocation::Preallocated, &killed_work()).unwrap();
    }
}

#[test]
fn a_copy_that_is_killed_at_any_step_leaves_a_whole_volume_or_none_and_gc_removes_the_rest() {
    let all = steps(Allocation::Preallocated).len();
    for step in 0..all {
        let rig = rig();
        let output = run_killed(module_path!(), "copies_until_it_is_killed", rig.dir.path(), step);
        assert!(was_killed(&output), "at step {step}: {output:?}");
        let volumes = Volumes::open(&rig.dir.path().join("volumes")).unwrap();
        let is_there = volumes.list().unwrap().contains(&key("copy"));
        // The last step is after the rename.
        assert_eq!(is_there, step + 1 == all, "at step {step}");
        assert!(!is_there || same(&rig));
        let leftovers = volumes.leftovers(&|_| true).unwrap();
        assert_eq!(leftovers.unfinished.len(), usize::from(step > 0 && !is_there), "at step {step}");
        assert_eq!(volumes.gc().unwrap(), leftovers.unfinished);
        assert_eq!(rig.tree().len(), 1 + usize::from(is_there));
        if is_there {
            volumes.remove(&key("copy")).unwrap();
        }
        copy(&volumes, Allocation::Sparse, &Work::new()).unwrap();
        assert!(same(&rig));
    }
}

#[test]
fn a_copy_that_is_cancelled_at_any_step_leaves_nothing_and_past_the_last_is_whole() {
    for allocation in [Allocation::Sparse, Allocation::Preallocated] {
        for (step, name) in steps(allocation).into_iter().enumerate() {
            let rig = rig();
            let copied = copy(&rig.volumes, allocation, &cancelled_work(step));
            if ["name a volume", "published"].contains(&name) {
                assert!(copied.is_ok() && same(&rig));
            } else {
                assert!(matches!(copied, Err(VolumeError::Cancelled(_))), "at {name}: {copied:?}");
                assert_eq!(rig.tree().len(), 1, "at {name}");
            }
        }
    }
}

#[test]
fn a_resize_that_is_cancelled_changes_neither_size_nor_blocks() {
    let rig = rig();
    let before = rig.volumes.usage(&key("source")).unwrap();
    for step in 0..2 {
        let resized = rig.volumes.resize(
            &key("source"),
            8 * MIB,
            Shrink::Refused,
            Allocation::Preallocated,
            &cancelled_work(step),
        );
        assert!(matches!(resized, Err(VolumeError::Cancelled(_))), "{resized:?}");
        assert_eq!(rig.volumes.usage(&key("source")).unwrap(), before, "at step {step}");
    }
}

#[test]
fn a_source_that_is_cut_off_meanwhile_makes_no_volume() {
    let pieces = steps(Allocation::Sparse).iter().filter(|step| **step == "copy a piece").count();
    for step in 1..=pieces {
        let rig = rig();
        let path = rig.path("source");
        let work = at_step(step, move |name| {
            assert_eq!(name, "copy a piece");
            File::options().write(true).open(&path).unwrap().set_len(512).unwrap();
        });
        let error = copy(&rig.volumes, Allocation::Sparse, &work).unwrap_err();
        let VolumeError::File { source, .. } = error else { panic!("{error:?}") };
        assert!(matches!(source, FileError::Shrunk { got: 512, .. }), "{source}");
        assert_eq!(rig.tree().len(), 1);
    }
}

#[test]
fn two_that_make_one_volume_at_once_leave_one_and_nothing_else() {
    let rig = Arc::new(rig());
    let other = Arc::clone(&rig);
    // The second is done before the first has begun to publish.
    let work = at_step(5, move |name| {
        assert_eq!(name, "seal a volume");
        copy(&other.volumes, Allocation::Sparse, &Work::new()).unwrap();
    });
    let error = copy(&rig.volumes, Allocation::Sparse, &work).unwrap_err();
    assert!(matches!(error, VolumeError::Exists(_)), "{error}");
    assert_eq!(rig.tree().len(), 2);
    drop(work);
    assert!(same(&rig));
}

#[test]
fn what_does_not_fit_says_what_was_asked_and_what_is_left_and_leaves_nothing() {
    run_on(FileSystem::Small, module_path!(), "fills_a_small_disk");
}

#[test]
#[ignore = "run by another test, with a small disk"]
fn fills_a_small_disk() {
    let Some(dir) = child_dir() else { return };
    let volumes = Volumes::open(&dir.join("volumes")).unwrap();
    let full = |result: Result<Usage, VolumeError>, asked_bytes: u64| {
        let error = result.unwrap_err();
        let VolumeError::Full { source: FileError::Full { asked, left, .. }, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(asked, asked_bytes);
        assert!((2 * MIB..4 * MIB).contains(&left), "{left}");
    };
    // More than there is may be promised, but not kept.
    let usage = volumes.create(&key("source"), 8 * MIB, Source::Empty, Allocation::Sparse, &Work::new());
    assert_eq!(usage.unwrap().allocated_bytes, 0);
    let file = volumes.open_for_use(&key("source"), false).unwrap();
    file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    drop(file);
    let before = tree(&dir);
    let create = |size_bytes, from, allocation| {
        volumes.create(&key("copy"), size_bytes, from, allocation, &Work::new())
    };
    full(create(8 * MIB, Source::Empty, Allocation::Preallocated), 8 * MIB);
    let path = tempfile::tempdir().unwrap();
    let outside =
        File::options().read(true).write(true).create_new(true).open(path.path().join("f")).unwrap();
    outside.write_all_at(&vec![2; 6 << 20], 0).unwrap();
    full(create(6 * MIB, Source::File(&outside, path.path()), Allocation::Sparse), 6 * MIB);
    // Somebody else is faster than the look at what is left.
    let rival = File::create(dir.join("rival")).unwrap();
    let work = at_step(1, move |name| {
        assert_eq!(name, "allocate a piece");
        rival.write_all_at(&vec![3; 2 << 20], 0).unwrap();
    });
    let late = volumes.create(&key("copy"), 5 * MIB / 2, Source::Empty, Allocation::Preallocated, &work);
    assert!(matches!(late, Err(VolumeError::Full { .. })), "{late:?}");
    std::fs::remove_file(dir.join("rival")).unwrap();
    drop(work);
    assert_eq!(tree(&dir), before);
    let grown =
        volumes.resize(&key("source"), 16 * MIB, Shrink::Refused, Allocation::Preallocated, &Work::new());
    full(grown, 8 * MIB);
    assert_eq!(volumes.usage(&key("source")).unwrap(), Usage { size_bytes: 8 * MIB, allocated_bytes: MIB });
    assert_eq!(allocated(&dir.join("volumes/tenants/acme/source.raw")), MIB);
}

#[test]
fn a_sparse_copy_shares_its_sources_blocks_where_the_file_system_can() {
    run_on(FileSystem::Sharing, module_path!(), "shares_blocks");
}

#[test]
#[ignore = "run by another test, on a file system that can"]
fn shares_blocks() {
    let Some(dir) = child_dir() else { return };
    let volumes = Volumes::open(&dir.join("volumes")).unwrap();
    volumes.create(&key("source"), 32 * MIB, Source::Empty, Allocation::Sparse, &Work::new()).unwrap();
    let file = volumes.open_for_use(&key("source"), false).unwrap();
    file.write_all_at(&vec![1; 32 << 20], 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let root = File::open(&dir).unwrap();
    let before = left_bytes(&root).unwrap();
    let usage = copy(&volumes, Allocation::Sparse, &Work::new()).unwrap();
    let taken = before.saturating_sub(left_bytes(&root).unwrap());
    assert!(taken < MIB && usage.allocated_bytes >= 32 * MIB, "{taken} bytes, {usage:?}");
}
