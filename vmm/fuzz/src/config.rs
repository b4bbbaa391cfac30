//! A configuration file of any bytes.

use vmm::spec::ConfigFile;

use crate::microvm::MicroVm;

/// Plays one input.
pub fn run(data: &[u8]) {
    match ConfigFile::parse(data) {
        Ok(file) => {
            let mut vm = MicroVm::default();
            if let Err(denial) = vm.configure_from(file) {
                assert_ne!(denial.to_string(), "");
            }
            vm.put_again();
        }
        Err(error) => assert_ne!(error.to_string(), ""),
    }
}
