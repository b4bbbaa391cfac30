//! Imports that are killed, cancelled, or run out of space, at each of their steps.

use std::fs;
use std::os::unix::fs::FileExt;

use super::tests::{Rig, spec};
use super::*;
use crate::agent::files::testing::{
    FileSystem, cancelled_work, child_dir, killed_work, noted_work, run_killed, run_on, tree, was_killed,
};

/// How many steps an import has: those that may be cancelled, and all.
fn steps() -> (usize, usize) {
    let rig = Rig::new();
    let (work, steps) = noted_work();
    rig.images.import(&rig.spec("debian"), &work).unwrap();
    let steps = steps.lock().unwrap().clone();
    let of_three = |name| steps.iter().filter(|step| **step == name).count() == 3;
    assert!(of_three("stage a blob") && of_three("seal a blob") && of_three("publish a blob"), "{steps:?}");
    assert!(steps.ends_with(&["publish the manifest", "published"]), "{steps:?}");
    (1 + steps.iter().position(|step| *step == "publish").unwrap(), steps.len())
}

#[test]
#[ignore = "run by another test, in a process that is killed"]
fn imports_until_it_is_killed() {
    if let Some(dir) = child_dir() {
        let images = Images::open(&dir.join("images")).unwrap();
        images.import(&spec(&dir, "debian"), &killed_work()).unwrap();
    }
}

#[test]
fn an_import_that_is_killed_at_any_step_leaves_a_whole_image_or_none_and_gc_removes_the_rest() {
    let (_, all) = steps();
    for step in 0..all {
        let rig = Rig::new();
        let output = run_killed(module_path!(), "imports_until_it_is_killed", rig.dir.path(), step);
        assert!(was_killed(&output), "at step {step}: {output:?}");
        let images = Images::open(&rig.dir.path().join("images")).unwrap();
        let listing = images.list().unwrap();
        assert!(listing.damaged.is_empty());
        // The last step is after the rename that makes it an image.
        assert_eq!(listing.images.len(), usize::from(step + 1 == all), "at step {step}");
        for image in &listing.images {
            images.verify(&image.id, &Work::new()).unwrap();
        }
        let leftovers = images.leftovers().unwrap();
        assert_eq!(leftovers.len(), rig.tree().len() - 4 * listing.images.len(), "at step {step}");
        assert_eq!(images.gc().unwrap(), leftovers);
        assert_eq!(rig.tree().len(), 4 * listing.images.len());
        images.import(&rig.spec("debian"), &Work::new()).unwrap();
        assert_eq!(rig.tree().len(), 4);
    }
}

#[test]
fn an_import_that_is_cancelled_at_any_step_leaves_nothing_and_past_the_last_is_whole() {
    let (until, all) = steps();
    for step in 0..all {
        let rig = Rig::new();
        let imported = rig.images.import(&rig.spec("debian"), &cancelled_work(step));
        if step < until {
            assert!(matches!(imported, Err(ImageError::Cancelled(_))), "at step {step}: {imported:?}");
            assert_eq!(rig.tree(), Vec::<PathBuf>::new(), "at step {step}");
        } else {
            rig.images.verify(&imported.unwrap().id, &Work::new()).unwrap();
        }
    }
}

#[test]
fn an_import_whose_manifest_can_not_be_named_leaves_no_blobs() {
    let id = Rig::new().images.import(&Rig::new().spec("debian"), &Work::new()).unwrap().id;
    let rig = Rig::new();
    // What stands in its place can't be replaced by a file.
    let place = rig.dir.path().join("images/manifests").join(id.as_str());
    let work = Work::watched({
        let place = place.clone();
        move |name| {
            if name == "publish the manifest" {
                fs::create_dir(&place).unwrap();
            }
        }
    });
    let error = rig.images.import(&rig.spec("debian"), &work).unwrap_err();
    assert!(matches!(error, ImageError::Store(FileError::Host { .. })), "{error}");
    fs::remove_dir(place).unwrap();
    assert_eq!(rig.tree(), Vec::<PathBuf>::new());
}

#[test]
fn an_import_that_does_not_fit_says_what_was_asked_and_what_is_left_and_leaves_nothing() {
    run_on(FileSystem::Small, module_path!(), "fills_a_small_disk");
}

#[test]
#[ignore = "run by another test, with a small disk"]
fn fills_a_small_disk() {
    let Some(dir) = child_dir() else { return };
    let images = Images::open(&dir.join("images")).unwrap();
    let rig = Rig::new();
    // Sparse enough to fit; then twice what there is.
    let rootfs = File::options().write(true).open(rig.dir.path().join("rootfs")).unwrap();
    let fits = images.import(&rig.spec("fits"), &Work::new()).unwrap();
    let before = tree(&dir);
    rootfs.write_all_at(&vec![5; 8 << 20], 0).unwrap();
    let error = images.import(&rig.spec("big"), &Work::new()).unwrap_err();
    let ImageError::Source { field: "rootfs", source } = error else { panic!("{error:?}") };
    let FileError::Full { asked, left, .. } = source else { panic!("{source:?}") };
    assert_eq!(asked, 8 << 20);
    assert!((3 << 20..4 << 20).contains(&left), "{left}");
    assert_eq!(tree(&dir), before);
    images.verify(&fits.id, &Work::new()).unwrap();
    fs::remove_dir_all(dir.join("images")).unwrap();
}
