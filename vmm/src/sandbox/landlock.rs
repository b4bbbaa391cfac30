//! Landlock (Linux `Documentation/userspace-api/landlock.rst`): what no microVM ever needs of a file system, a network or
//! another process, taken away on top of everything else, where the kernel has it.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest version this was written for; of an older one the kernel is asked for what it has.
const NEWEST: ABI = ABI::V6;

/// What a running VMM does with files: opens images, its log and metrics, and its socket's file.
fn needed() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::WriteFile
        // Opening a directory, so that it is refused as what it is; listing one takes a system call that no thread has.
        | AccessFs::ReadDir
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::IoctlDev
}

/// Takes from this thread and all it will start: executing, directories, links, device nodes and FIFOs, removing and renaming
/// files, TCP, abstract Unix sockets and signals of other processes, and tracing them. Whether the kernel has (some of) that.
///
/// What is in `removable`, which are directories, can still be removed, and renamed within its directory: there the process has
/// a socket of its own. Landlock knows directories only, and what is below them goes along; one that can't be opened holds
/// nothing to remove.
///
/// # Errors
/// If the kernel has it and refuses; then nothing was taken.
pub fn restrict(removable: &[&Path]) -> Result<bool, RulesetError> {
    // What a ruleset handles is denied where no rule allows it. The rest stays as it is.
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST) & !needed())?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for directory in removable.iter().filter_map(|path| PathFd::new(path).ok()) {
        ruleset = ruleset.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
    }
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    #[test]
    fn files_are_removed_and_renamed_in_the_directories_named_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let (own, users) = (dir.path().join("own"), dir.path().join("users"));
        for dir in [&own, &users] {
            fs::create_dir(dir).unwrap();
            for file in ["a", "b"] {
                fs::write(dir.join(file), "precious").unwrap();
            }
        }
        let nowhere = dir.path().join("nowhere");
        // What is taken stays taken, but from this thread alone.
        let attempts = || {
            if !restrict(&[&own, &nowhere]).unwrap() {
                return eprintln!("skipped: this kernel has no Landlock; nothing was restricted");
            }
            fs::rename(own.join("a"), own.join("c")).unwrap();
            fs::remove_file(own.join("b")).unwrap();
            for refused in [
                fs::remove_file(users.join("a")),
                fs::rename(users.join("a"), users.join("c")),
                fs::rename(users.join("a"), own.join("d")),
                fs::remove_file(users.join("b")),
            ] {
                let errno = refused.unwrap_err().raw_os_error();
                assert!([Some(libc::EACCES), Some(libc::EXDEV)].contains(&errno), "{errno:?}");
            }
            fs::write(users.join("a"), "written").unwrap();
            fs::write(users.join("new"), "written").unwrap();
        };
        thread::scope(|scope| scope.spawn(attempts).join().unwrap());
    }
}
