"""What the kernel says about a process: CPU time, memory by mapping, KVM exits."""

import glob
import os


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
