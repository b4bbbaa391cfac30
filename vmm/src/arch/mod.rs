//! What is particular to a processor architecture: its address map, tables and initial register values. Data in, data out.

pub mod x86_64;
