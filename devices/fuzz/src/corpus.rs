//! The inputs that are kept, run again without a fuzzer.

use std::fs;
use std::path::Path;

/// A fuzz target: its name and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Runs every target on its corpus, `corpus/NAME` of the crate at `home`, and on an empty input. Prints each input's name
/// first, so that a failing test shows it.
///
/// # Panics
/// As a target does, or if `targets` are not those of `fuzz_targets`.
pub fn replay(home: &str, targets: &[Target]) {
    let names = |folder: &str| {
        let entries = fs::read_dir(Path::new(home).join(folder)).into_iter().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder can be read").path()).collect();
        paths.sort();
        paths
    };
    let mut known: Vec<_> = targets.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    let files = names("fuzz_targets");
    let built: Vec<_> = files.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
    assert_eq!(known, built, "every target is replayed");
    for (name, run) in targets {
        println!("{name}: an empty input");
        run(&[]);
        for path in names(&format!("corpus/{name}")) {
            println!("{name}: {}", path.display());
            run(&fs::read(&path).expect("an input can be read"));
        }
    }
}
