//! Tenants and strangers who want more than is theirs.

use serde_json::json;

use super::client::{self, User};
use super::ready;
use super::rig::{Host, spec_with, vm_path};

const READER: User = User { uid: 47_301, gids: &[47_301] };

#[test]
fn a_reader_does_not_write_to_a_console_however_that_is_spelt() {
    if !ready() {
        return;
    }
    let host = Host::new();
    host.put("/v1/tenants/t", &json!({ "access": [{ "uid": READER.uid, "role": "read" }] }));
    host.run("vm", &spec_with("do=spin", &json!({})));
    let path = format!("{}/console", vm_path("t", "vm"));
    READER.does(|| client::console(&host.socket(), &path)).unwrap();
    for query in ["write=true", "%77rite=true", "write=tru%65", "history=1&wri%74e=true"] {
        let attached = READER.does(|| client::console(&host.socket(), &format!("{path}?{query}")));
        let refused = attached.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.starts_with("403"), "{query}: {refused}");
    }
}
