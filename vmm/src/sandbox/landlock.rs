//! Landlock (Linux `Documentation/userspace-api/landlock.rst`): what no microVM ever needs of a file system, a network or
//! another process, taken away on top of everything else, where the kernel has it.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
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
        | AccessFs::RemoveFile
        | AccessFs::IoctlDev
}

/// Takes from this thread and all it will start: executing, directories, links, device nodes and FIFOs, TCP, abstract Unix
/// sockets and signals of other processes, and tracing them. Whether the kernel has (some of) that.
///
/// # Errors
/// If the kernel has it and refuses; then nothing was taken.
pub fn restrict() -> Result<bool, RulesetError> {
    // What a ruleset handles is denied where no rule allows it, and there are no rules. The rest stays as it is.
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST) & !needed())?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}
