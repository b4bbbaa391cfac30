//! The Yun virtual machine monitor.
