//! x86-64: the address map, CPUID and MSR values, boot registers, and the tables that firmware would have left.

pub mod acpi;
pub mod cpuid;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod regs;
