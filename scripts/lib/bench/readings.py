"""What the kernel says about a process: CPU time, memory by mapping, KVM exits."""

import ctypes
import glob
import os
import struct


def cpu_ms_by_thread(pid):
    """CPU time of each thread, to the nanosecond, by its name."""
    threads = {}
    for task in glob.glob(f"/proc/{pid}/task/*"):
        try:
            with open(f"{task}/schedstat") as stat, open(f"{task}/comm") as comm:
                name = comm.read().strip()
                threads[name] = threads.get(name, 0) + int(stat.read().split()[0]) / 1e6
        except (FileNotFoundError, ProcessLookupError):
            pass
    return threads


def cpu_ms(pid):
    return sum(cpu_ms_by_thread(pid).values())


def minor_faults(pid):
    """Page faults that needed no I/O, of all threads since the process began."""
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[7])


def memory_kib(pid, ram_kib):
    """Resident, proportional and private KiB of all mappings but guest RAM, which is what is at least half as large as it. Also the
    largest of the others by what backs them, to see where it goes."""
    total = {"rss": 0, "pss": 0, "private": 0}
    places, ram = {}, 0
    mapping = {}

    def count():
        nonlocal ram
        if not mapping:
            return
        if mapping["Size"] >= ram_kib // 2:
            ram += mapping["Size"]
            return
        total["rss"] += mapping["Rss"]
        total["pss"] += mapping["Pss"]
        total["private"] += mapping["Private_Clean"] + mapping["Private_Dirty"]
        places[mapping["name"]] = places.get(mapping["name"], 0) + mapping["Rss"]

    with open(f"/proc/{pid}/smaps") as smaps:
        for line in smaps:
            words = line.split()
            if not words[0].endswith(":"):
                count()
                mapping = {"name": f"{os.path.basename(words[5]) if len(words) > 5 else 'anonymous'} {words[1]}"}
            elif len(words) == 3 and words[2] == "kB":
                mapping[words[0][:-1]] = int(words[1])
    count()
    total["ram_mappings"] = ram
    total["places"] = dict(sorted(places.items(), key=lambda place: -place[1])[:12])
    return total


def exits(pid):
    """Counters of KVM in debugfs, of this process's VM: exits, and what it had to do about them."""
    counters = {}
    for path in glob.glob(f"/sys/kernel/debug/kvm/{pid}-*/*"):
        name = os.path.basename(path)
        if name in ("exits", "io_exits", "mmio_exits", "halt_exits", "irq_exits", "irq_injections", "insn_emulation", "host_state_reload", "signal_exits", "pf_fixed", "pf_taken", "request_irq_exits"):
            with open(path) as counter:
                counters[name] = int(counter.read().strip() or 0)
    return counters


class Calls:
    """Counts the system calls of all threads of a process, those that it starts later too, by the kernel's own tracepoint: cheaper than
    strace by two orders of magnitude."""

    PERF_EVENT_OPEN, TRACEPOINT, INHERIT = 298, 2, 1 << 1

    def __init__(self, pid):
        self.counters = []
        try:
            with open("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id") as file:
                event = int(file.read())
        except FileNotFoundError:
            return
        # struct perf_event_attr: type, size, config, sample period and type, read format, flags.
        attributes = ctypes.create_string_buffer(struct.pack("IIQQQQQ", self.TRACEPOINT, 128, event, 0, 0, 0, self.INHERIT), 128)
        libc = ctypes.CDLL(None, use_errno=True)
        for task in os.listdir(f"/proc/{pid}/task"):
            descriptor = libc.syscall(self.PERF_EVENT_OPEN, attributes, int(task), -1, -1, 0)
            if descriptor >= 0:
                self.counters.append(descriptor)

    def count(self):
        """So many until now; None where the kernel does not count."""
        return sum(struct.unpack("Q", os.read(counter, 8))[0] for counter in self.counters) if self.counters else None

    def end(self):
        for counter in self.counters:
            os.close(counter)
        self.counters = []
