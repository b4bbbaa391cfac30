//! Requests in a row, from method, path and body to what they change.
//!
//! An input is text: requests with a NUL between them, each `METHOD TARGET BODY`.

use vmm::api::Method;

use crate::microvm::MicroVm;

/// Requests of one input at most.
const REQUESTS_MAX: usize = 32;

/// Plays one input.
pub fn run(data: &[u8]) {
    let mut vm = MicroVm::default();
    for request in data.split(|byte| *byte == 0).take(REQUESTS_MAX) {
        let mut words = request.splitn(3, |byte| *byte == b' ');
        let mut word = || words.next().unwrap_or_default();
        let (method, target, body) = (word(), String::from_utf8_lossy(word()), word());
        let Some(method) = std::str::from_utf8(method).ok().and_then(Method::parse) else { continue };
        vm.request(method, &target, body);
        vm.put_again();
    }
}
