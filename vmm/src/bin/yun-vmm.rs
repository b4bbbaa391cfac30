//! `yun-vmm`: one process, one microVM.
fn main() {}
