//! What is imported, found, used and removed.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;
use crate::agent::files::testing::{allocated, at_step, sparse_file, tree};
use crate::agent::images::ImportSpec;

/// Of the root file system that is imported, of which an eighth is data.
const ROOTFS_BYTES: u64 = 1 << 20;

/// A directory with three sources, and a store.
pub(super) struct Rig {
    pub(super) dir: TempDir,
    pub(super) images: Images,
}

impl Rig {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kernel"), "a kernel").unwrap();
        fs::write(dir.path().join("initrd"), "an initrd").unwrap();
        sparse_file(&dir.path().join("rootfs"), ROOTFS_BYTES, &[0, ROOTFS_BYTES / 2]);
        let images = Images::open(&dir.path().join("images")).unwrap();
        Self { dir, images }
    }

    pub(super) fn spec(&self, name: &str) -> ImportSpec {
        spec(self.dir.path(), name)
    }

    fn import(&self, name: &str) -> Image {
        self.images.import(&self.spec(name), &Work::new()).unwrap()
    }

    pub(super) fn tree(&self) -> Vec<PathBuf> {
        tree(&self.dir.path().join("images"))
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("images/blobs").join(digest.as_str())
    }

    /// Changes a byte of a blob, keeping its size and time of modification, long after it was imported.
    fn damage(&self, digest: &Digest) {
        let path = self.blob(digest);
        let modified = path.metadata().unwrap().modified().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"X", 3).unwrap();
        file.set_modified(modified).unwrap();
    }
}

pub(super) fn spec(dir: &Path, name: &str) -> ImportSpec {
    ImportSpec {
        name: name.to_owned(),
        kernel: dir.join("kernel"),
        initrd: Some(dir.join("initrd")),
        rootfs: Some(dir.join("rootfs")),
        kernel_args: "quiet".to_owned(),
        wants_ip: true,
        default_user: Some("debian".to_owned()),
    }
}

fn text(mut file: &File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn an_image_is_found_by_id_name_and_beginning_and_opens_with_the_bytes_that_were_imported() {
    let rig = Rig::new();
    let work = Work::new();
    let image = rig.images.import(&rig.spec("debian"), &work).unwrap();
    let size = ROOTFS_BYTES + 17;
    assert_eq!((work.progress().done(), work.progress().total(), image.size_bytes), (size, size, size));
    assert_eq!(image.manifest.kernel, BlobRef { sha256: Digest::of(b"a kernel"), size_bytes: 8 });
    assert!(image.imported_at_ms > 1_700_000_000_000);
    for asked in ["debian", image.id.as_str(), &image.id.as_str()[..4]] {
        assert_eq!(rig.images.get(asked).unwrap(), image);
    }
    for asked in ["debia", "", &image.id.as_str()[..3], &"0".repeat(64), "../tmp"] {
        assert!(matches!(rig.images.get(asked), Err(ImageError::NotFound { .. })), "{asked}");
    }
    let opened = rig.images.open_for_use(&image.id, &Work::new()).unwrap();
    assert_eq!(
        (text(&opened.kernel), text(&opened.initrd.unwrap())),
        ("a kernel".into(), "an initrd".into())
    );
    let (mut stored, source) = (Vec::new(), fs::read(rig.dir.path().join("rootfs")).unwrap());
    opened.rootfs.unwrap().read_to_end(&mut stored).unwrap();
    assert!(stored == source);
    let blob = rig.blob(&image.manifest.rootfs.unwrap().sha256);
    assert_eq!(blob.metadata().unwrap().permissions().mode() & 0o7777, 0o444);
    assert!(allocated(&blob) < ROOTFS_BYTES / 2, "holes are kept");
    assert_eq!(rig.images.leftovers().unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn importing_the_same_again_is_the_same_image_and_other_content_may_not_have_its_name() {
    let rig = Rig::new();
    let first = rig.import("debian");
    let before = rig.tree();
    assert_eq!(rig.import("debian").id, first.id);
    fs::write(rig.dir.path().join("kernel"), "another kernel").unwrap();
    let error = rig.images.import(&rig.spec("debian"), &Work::new()).unwrap_err();
    assert!(matches!(&error, ImageError::NameTaken { by, .. } if *by == first.id), "{error}");
    assert_eq!(rig.tree(), before, "nothing is left of it");
    assert_ne!(rig.import("debian-2").id, first.id);
    assert_eq!(rig.images.list().unwrap().images.len(), 2);
}

#[test]
fn a_blob_goes_with_the_last_image_that_has_it_and_no_image_while_it_is_used() {
    let rig = Rig::new();
    let first = rig.import("one");
    fs::write(rig.dir.path().join("kernel"), "another kernel").unwrap();
    let second = rig.import("two");
    let error = rig.images.remove(&first.id, &|id| *id == first.id).unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    rig.images.open_for_use(&first.id, &Work::new()).unwrap();
    rig.images.remove(&first.id, &|_| false).unwrap();
    assert!(!rig.blob(&first.manifest.kernel.sha256).exists());
    assert!(matches!(rig.images.remove(&first.id, &|_| false), Err(ImageError::NotFound { .. })));
    rig.images.verify(&second.id, &Work::new()).unwrap();
    rig.images.remove(&second.id, &|_| false).unwrap();
    assert_eq!(rig.tree(), Vec::<PathBuf>::new());
}

#[test]
fn a_damaged_or_missing_blob_is_named_and_never_served_and_importing_again_repairs_it() {
    let rig = Rig::new();
    let image = rig.import("debian");
    let digest = &image.manifest.initrd.as_ref().unwrap().sha256;
    for missing in [false, true] {
        if missing {
            fs::remove_file(rig.blob(digest)).unwrap()
        } else {
            rig.damage(digest)
        }
        for error in [
            rig.images.open_for_use(&image.id, &Work::new()).map(drop).unwrap_err(),
            rig.images.verify(&image.id, &Work::new()).map(drop).unwrap_err(),
        ] {
            assert!(error.to_string().contains(digest.as_str()), "{error}");
            assert_eq!(missing, matches!(error, ImageError::Missing { .. }), "{error}");
            assert_eq!(!missing, matches!(error, ImageError::Damaged { .. }), "{error}");
        }
        rig.import("debian");
        rig.images.open_for_use(&image.id, &Work::new()).unwrap();
    }
}

/// Until the file changed long enough ago for a verification to be remembered.
fn settle(path: &Path) {
    let metadata = path.metadata().unwrap();
    let changed = Duration::new(metadata.ctime().unsigned_abs(), metadata.ctime_nsec().try_into().unwrap());
    while SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
        < changed + Duration::from_millis(101)
    {
        std::thread::yield_now();
    }
}

#[test]
fn a_verified_image_is_not_read_again_until_somebody_touches_it() {
    let rig = Rig::new();
    let image = rig.import("debian");
    settle(&rig.blob(&image.manifest.rootfs.as_ref().unwrap().sha256));
    let read = |images: &Images| {
        let work = Work::new();
        images.open_for_use(&image.id, &work).map(|_| work.progress().done())
    };
    assert_eq!(read(&rig.images).unwrap(), image.size_bytes);
    for _ in 0..200 {
        assert_eq!(read(&rig.images).unwrap(), 0);
    }
    let work = Work::new();
    rig.images.verify(&image.id, &work).unwrap();
    assert_eq!(work.progress().done(), image.size_bytes, "who asks for it gets it");
    // Only its time of change says it.
    rig.damage(&image.manifest.kernel.sha256);
    assert!(matches!(read(&rig.images), Err(ImageError::Damaged { .. })));
    assert!(matches!(read(&rig.images), Err(ImageError::Damaged { .. })), "it stays so");
}

#[test]
fn what_is_no_regular_file_or_has_no_size_is_refused_by_field_without_waiting_for_anybody() {
    let rig = Rig::new();
    let at = |name: &str| rig.dir.path().join(name);
    symlink(at("kernel"), at("link")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("odd"), "odd").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    for (path, expected) in [
        (at("link"), "it is a symbolic link"),
        (at("fifo"), "it is a FIFO"),
        (at("socket"), "it is a socket"),
        (rig.dir.path().to_owned(), "it is a directory"),
        ("/dev/null".into(), "it is a device"),
        ("kernel".into(), "an absolute path is accepted"),
        (at("none"), "can't open"),
        (at("empty"), "\"0 bytes\" is refused"),
        (at("odd"), "\"3 bytes\" is refused"),
    ] {
        let spec = ImportSpec { rootfs: Some(path.clone()), ..rig.spec("debian") };
        let error = rig.images.import(&spec, &Work::new()).unwrap_err();
        assert!(error.to_string().contains("rootfs"), "{error}");
        let said = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(said.contains(expected), "{said}");
        assert_eq!(rig.tree(), Vec::<PathBuf>::new());
    }
    assert!(matches!(Images::open(Path::new("images")), Err(ImageError::Store(FileError::Relative(_)))));
}

#[test]
fn a_damaged_manifest_hides_no_other_image_and_no_blob_is_removed_as_long_as_it_is_there() {
    let rig = Rig::new();
    let first = rig.import("one");
    fs::write(rig.dir.path().join("kernel"), "another kernel").unwrap();
    let second = rig.import("two");
    let manifest = rig.dir.path().join("images/manifests").join(first.id.as_str());
    fs::set_permissions(&manifest, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&manifest, "{}").unwrap();
    let listing = rig.images.list().unwrap();
    assert_eq!((listing.images, listing.damaged.len()), (vec![second.clone()], 1));
    assert!(matches!(rig.images.get(first.id.as_str()), Err(ImageError::Damaged { .. })));
    let blobs = fs::read_dir(rig.dir.path().join("images/blobs")).unwrap().count();
    rig.images.remove(&second.id, &|_| false).unwrap();
    assert_eq!(rig.images.gc().unwrap(), Vec::<PathBuf>::new());
    assert_eq!(fs::read_dir(rig.dir.path().join("images/blobs")).unwrap().count(), blobs);
    // Once it is gone nothing is unsure.
    rig.images.remove(&first.id, &|_| false).unwrap();
    assert_eq!(rig.tree(), Vec::<PathBuf>::new());
}

#[test]
fn a_beginning_that_two_ids_have_is_ambiguous_and_a_manifest_of_another_version_is_not_understood() {
    let rig = Rig::new();
    let mut manifest = rig.import("debian").manifest;
    let mut seen = std::collections::HashMap::new();
    let (one, two) = (0..)
        .find_map(|number| {
            manifest.name = format!("n{number}");
            let bytes = serde_json::to_vec(&manifest).unwrap();
            let prefix = Digest::of(&bytes).as_str()[..4].to_owned();
            seen.insert(prefix, bytes.clone()).map(|other| (other, bytes))
        })
        .unwrap();
    let newer = serde_json::to_vec(&serde_json::json!({"version": 2, "name": "x", "more": true})).unwrap();
    for bytes in [&one, &two, &newer] {
        let path = rig.dir.path().join("images/manifests").join(Digest::of(bytes).as_str());
        fs::write(path, bytes).unwrap();
    }
    let id = Digest::of(&one);
    assert!(matches!(rig.images.get(&id.as_str()[..4]), Err(ImageError::Ambiguous { .. })));
    let error = rig.images.get(Digest::of(&newer).as_str()).unwrap_err();
    assert!(matches!(error, ImageError::NotUnderstood { .. }), "{error}");
}

#[test]
fn a_source_that_changes_meanwhile_is_stored_as_it_was_hashed_and_one_that_is_cut_off_not_at_all() {
    let rig = Rig::new();
    let path = rig.dir.path().join("rootfs");
    // Kernel and initrd have a step for the beginning, a piece and the end each; then the root file system begins, and has
    // a piece of data and one of hole.
    let work = at_step(8, {
        let path = path.clone();
        move |name| {
            assert_eq!(name, "copy a piece");
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .write_all_at(&[7; 4096], ROOTFS_BYTES / 2)
                .unwrap();
        }
    });
    let image = rig.images.import(&rig.spec("debian"), &work).unwrap();
    rig.images.verify(&image.id, &Work::new()).unwrap();
    let before = rig.tree();
    let work = at_step(8, move |_| File::options().write(true).open(&path).unwrap().set_len(512).unwrap());
    let error = rig.images.import(&rig.spec("cut"), &work).unwrap_err();
    let ImageError::Source { field: "rootfs", source } = error else { panic!("{error}") };
    assert!(matches!(source, FileError::Shrunk { got: 512, .. }), "{source}");
    assert_eq!(rig.tree(), before);
}

#[test]
fn many_threads_import_use_and_remove_at_once() {
    let rig = Rig::new();
    let kept = rig.import("kept");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (rig, kept) = (&rig, &kept);
            scope.spawn(move || {
                for _ in 0..4 {
                    let image = rig.import(&format!("image-{thread}"));
                    rig.images.open_for_use(&image.id, &Work::new()).unwrap();
                    rig.images.gc().unwrap();
                    rig.images.remove(&image.id, &|_| false).unwrap();
                    rig.images.open_for_use(&kept.id, &Work::new()).unwrap();
                }
            });
        }
    });
    let listing = rig.images.list().unwrap();
    assert_eq!((listing.images, rig.tree().len()), (vec![kept], 4));
}
