"""Where the exits and system calls of a case come from: histograms that the kernel keeps (tracefs, Documentation/trace/histogram.rst). They are
of the whole host, on which nothing but one VMM runs a guest; system calls are kept by thread."""

import os
import re

EVENTS = "/sys/kernel/tracing/events"
# What is counted, by which of its fields.
HISTOGRAMS = {
    "kvm/kvm_exit": "isa,exit_reason",
    "kvm/kvm_msr": "ecx,write",
    "kvm/kvm_pio": "port",
    "kvm/kvm_mmio": "gpa",
    "kvm/kvm_fast_mmio": "gpa",
    "kvm/kvm_inj_virq": "vector",
    "raw_syscalls/sys_enter": "common_pid,id",
}
# arch/x86/include/uapi/asm/svm.h and vmx.h.
SVM, VMX = 2, 1
REASONS = {
    SVM: {0x4E: "exception 14", 0x60: "interrupt of the host", 0x64: "interrupt window", 0x72: "CPUID", 0x77: "PAUSE", 0x78: "HLT", 0x7B: "port", 0x7C: "MSR", 0x81: "VMMCALL", 0x400: "page fault or MMIO"},
    VMX: {0: "exception", 1: "interrupt of the host", 7: "interrupt window", 10: "CPUID", 12: "HLT", 18: "VMCALL", 28: "CR", 30: "port", 31: "MSR", 32: "MSR", 40: "PAUSE", 48: "page fault or MMIO", 49: "MMIO", 52: "preemption timer"},
}
MSRS = {0x6E0: "TSC deadline", 0x80B: "EOI", 0x830: "ICR", 0x838: "timer count", 0x80D: "LDR", 0x3F1: "PEBS"}
# arch/x86/entry/syscalls/syscall_64.tbl: those that a VMM makes on its way.
CALLS = {0: "read", 1: "write", 7: "poll", 16: "ioctl", 17: "pread64", 18: "pwrite64", 19: "readv", 20: "writev", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 74: "fsync", 75: "fdatasync", 202: "futex", 230: "clock_nanosleep", 232: "epoll_wait", 233: "epoll_ctl", 271: "ppoll", 281: "epoll_pwait", 295: "preadv", 296: "pwritev", 299: "recvmmsg", 307: "sendmmsg", 327: "preadv2", 328: "pwritev2", 426: "io_uring_enter"}


def counted(event):
    """What a histogram holds: each set of values of its fields, and how often it came."""
    with open(f"{EVENTS}/{event}/hist") as file:
        for keys, hits in re.findall(r"^\{ (.*?) \} hitcount: *(\d+)", file.read(), re.MULTILINE):
            yield [int(value, 0) for value in re.findall(r": *(-?\w+)", keys)], int(hits)


class Profile:
    """Counts from `begin` to `end`."""

    def __init__(self):
        self.events = {event: keys for event, keys in HISTOGRAMS.items() if os.path.exists(f"{EVENTS}/{event}/hist")}
        if "kvm/kvm_exit" not in self.events:
            raise RuntimeError("this kernel keeps no histograms of events: --profile needs CONFIG_HIST_TRIGGERS")

    def trigger(self, event, what):
        with open(f"{EVENTS}/{event}/trigger", "w") as file:
            file.write(what)

    def begin(self):
        for event, keys in self.events.items():
            self.trigger(event, f"hist:keys={keys}:size=8192")

    def end(self, pid):
        """By kind and name. `pid` is the VMM, whose threads are all still there."""
        threads = {int(thread) for thread in os.listdir(f"/proc/{pid}/task")}
        found = {event: list(counted(event)) for event in self.events}
        for event, keys in self.events.items():
            self.trigger(event, f"!hist:keys={keys}:size=8192")
        total = {}

        def add(kind, name, hits):
            of = total.setdefault(kind, {})
            of[name] = of.get(name, 0) + hits

        for (isa, reason), hits in found["kvm/kvm_exit"]:
            add("exits", REASONS.get(isa, {}).get(reason, f"reason {reason:#x}"), hits)
        for (register, write), hits in found.get("kvm/kvm_msr", ()):
            add("msr", f"{MSRS.get(register, f'{register:#x}')} {'written' if write else 'read'}", hits)
        for (port,), hits in found.get("kvm/kvm_pio", ()):
            add("port", f"{port:#x}", hits)
        for event in ("kvm/kvm_mmio", "kvm/kvm_fast_mmio"):
            for (address,), hits in found.get(event, ()):
                add("mmio", f"{address:#x}", hits)
        for (vector,), hits in found.get("kvm/kvm_inj_virq", ()):
            add("interrupts", f"vector {vector}", hits)
        for (thread, number), hits in found.get("raw_syscalls/sys_enter", ()):
            if thread in threads:
                add("calls", CALLS.get(number, f"system call {number}"), hits)
        return total


def each(total, requests):
    """What `Profile.end` found, for each request, the most frequent first."""
    most = lambda of: sorted(of.items(), key=lambda item: -item[1])[:8]
    return {kind: {name: hits / requests for name, hits in most(of)} for kind, of in total.items()}
