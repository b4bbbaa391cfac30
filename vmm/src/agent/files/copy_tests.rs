//! Copies between files of this machine; the stores' tests have the faults.

use std::os::unix::fs::FileExt;

use super::*;
use crate::agent::files::left_bytes;
use crate::agent::files::testing::{FileSystem, allocated, at_step, child_dir, run_on, sparse_file};

const MIB: u64 = 1 << 20;

fn copied(dir: &Path, source: &File, size: u64, method: Method, work: &Work) -> Result<File, FileError> {
    let path = dir.join("copy");
    let target = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    target.set_len(size).unwrap();
    let copy =
        Copy { source, source_path: Path::new("source"), size, target: &target, target_path: &path, method };
    let mut end = 0;
    copy.run(work, &mut |range, piece| {
        assert_eq!(range.start, end, "no gap");
        assert!(range.end - range.start <= PIECE);
        let mut byte = [0];
        target.read_exact_at(&mut byte, range.start).unwrap();
        assert!(piece == Piece::Data || byte == [0], "a hole is empty");
        end = range.end;
        Ok(())
    })?;
    assert_eq!(end, size);
    Ok(target)
}

#[test]
fn bytes_are_copied_and_holes_stay_holes_whichever_way_they_go() {
    let dir = tempfile::tempdir().unwrap();
    let size = 50 * MIB + 512;
    // At the beginning, across the end of a piece, and in the last sector.
    let source = sparse_file(&dir.path().join("source"), size, &[0, 16 * MIB - 4096, 40 * MIB]);
    source.write_all_at(&[9; 512], size - 512).unwrap();
    for method in [Method::Share, Method::Write] {
        let work = Work::new();
        copied(dir.path(), &source, size, method, &work).unwrap();
        assert_eq!(work.progress().done(), size);
        let copy = dir.path().join("copy");
        assert!(std::fs::read(&copy).unwrap() == std::fs::read(dir.path().join("source")).unwrap());
        assert!(allocated(&copy) < MIB, "{method:?}: {}", allocated(&copy));
    }
}

#[test]
fn a_source_that_is_full_or_all_hole_or_empty_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    for (size, data) in [(0, vec![]), (3 * MIB, vec![]), (128 << 10, vec![0, 64 << 10])] {
        let path = dir.path().join(size.to_string());
        let source = sparse_file(&path, size, &data);
        copied(dir.path(), &source, size, Method::Share, &Work::new()).unwrap();
        assert!(std::fs::read(dir.path().join("copy")).unwrap() == std::fs::read(&path).unwrap());
    }
}

#[test]
fn a_source_that_is_cut_off_meanwhile_is_an_error_with_both_sizes_whether_it_ends_in_data_or_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    for (name, size, data) in [("hole", 40 * MIB, vec![0]), ("data", 128 << 10, vec![0, 64 << 10])] {
        for method in [Method::Share, Method::Write] {
            let path = dir.path().join(format!("{name} {method:?}"));
            let source = sparse_file(&path, size, &data);
            let cut = source.try_clone().unwrap();
            let work = at_step(0, move |_| cut.set_len(4096).unwrap());
            let error = copied(dir.path(), &source, size, method, &work).unwrap_err();
            let FileError::Shrunk { expected, got, .. } = error else { panic!("{error}") };
            assert_eq!((expected, got), (size, 4096), "{name} {method:?}");
        }
    }
}

#[test]
fn a_copy_to_another_file_system_goes_the_long_way() {
    let (dir, shm) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let source = sparse_file(&shm.path().join("source"), 2 * MIB, &[0, MIB]);
    copied(dir.path(), &source, 2 * MIB, Method::Share, &Work::new()).unwrap();
    let copy = dir.path().join("copy");
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(shm.path().join("source")).unwrap());
    assert_eq!(allocated(&copy), 128 << 10);
}

#[test]
fn a_copy_shares_its_sources_blocks_where_the_file_system_can() {
    run_on(FileSystem::Sharing, module_path!(), "shares_blocks");
}

#[test]
#[ignore = "run by another test, on a file system that can"]
fn shares_blocks() {
    let Some(dir) = child_dir() else { return };
    let source = sparse_file(&dir.join("source"), 40 * MIB + 512, &[]);
    source.write_all_at(&vec![5; 33 << 20], 4096).unwrap();
    source.write_all_at(&[6; 512], 40 * MIB).unwrap();
    source.sync_all().unwrap();
    let before = left_bytes(&source).unwrap();
    let copy = copied(&dir, &source, 40 * MIB + 512, Method::Share, &Work::new()).unwrap();
    copy.sync_all().unwrap();
    let taken = before.saturating_sub(left_bytes(&source).unwrap());
    assert!(taken < MIB, "{taken} bytes");
    assert!(std::fs::read(dir.join("copy")).unwrap() == std::fs::read(dir.join("source")).unwrap());
    assert!(allocated(&dir.join("copy")) > 33 * MIB, "each counts them");
    // Blocks of its own are what one that was to be preallocated is for.
    copied(&dir, &source, 40 * MIB + 512, Method::Write, &Work::new()).unwrap().sync_all().unwrap();
    assert!(before.saturating_sub(left_bytes(&source).unwrap()) > 33 * MIB);
}
