//! Landlock (Linux `Documentation/userspace-api/landlock.rst`): what no microVM ever needs of a file system, a network or
//! another process, taken away on top of everything else, where the kernel has it.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest version this was written for; of an older one the kernel is asked for what it has.
const NEWEST: ABI = ABI::V6;

/// Why the process could not be restricted.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// The file system's top can't be opened.
    #[error("Landlock: {0}")]
    Root(#[from] landlock::PathFdError),
    /// The kernel has it, and refuses.
    #[error("Landlock: {0}")]
    Ruleset(#[from] RulesetError),
}

/// What a running VMM does with files: opens images, its log and metrics, and its socket's file.
fn needed() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::WriteFile
        // Opening a directory, so that it is refused as what it is; listing one takes a system call that no thread has.
        | AccessFs::ReadDir
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::RemoveFile
        | AccessFs::IoctlDev
}

/// Takes from this thread and all it will start: executing, directories, links, device nodes and FIFOs, TCP,
/// abstract Unix sockets and signals of other processes, and tracing them. Whether the kernel has (some of) that.
///
/// # Errors
/// [`LandlockError`]; then nothing was taken.
pub fn restrict() -> Result<bool, LandlockError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, needed()))?;
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}
