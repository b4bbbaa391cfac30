"""What an agent has and leaves: of its process, of its directory, of the host."""

import collections
import json
import os
import re
import shutil
import socket
import subprocess

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_s(pid):
    """CPU time of a process, also of threads of it that have ended."""
    with open(f"/proc/{pid}/stat") as stat:
        words = stat.read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / TICKS_A_SECOND


def switches(pid):
    """How often each thread of it went to sleep, which is how often it was woken."""
    counts = collections.Counter()
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/status") as status:
                counts[task] = sum(int(line.split()[1]) for line in status if line.startswith("voluntary_ctxt_switches"))
        except FileNotFoundError:
            pass
    return counts


def memory_mib(pid):
    """Resident, most ever resident, private."""
    values = collections.Counter()
    for file in ("status", "smaps_rollup"):
        with open(f"/proc/{pid}/{file}") as lines:
            for line in lines:
                words = line.split()
                if len(words) == 3 and words[2] == "kB":
                    values[words[0]] += int(words[1])
    return {"rss": values["VmRSS:"] / 1024, "peak": values["VmHWM:"] / 1024, "private": (values["Private_Clean:"] + values["Private_Dirty:"]) / 1024}


def descriptors(pid):
    """What it has open, by kind: numbers of sockets and the like left out."""
    kinds = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            kinds.append(re.sub(r"\[\d+\]", "", os.readlink(f"/proc/{pid}/fd/{number}")))
        except FileNotFoundError:
            pass
    return collections.Counter(kinds)


def threads(pid):
    """Its threads by name, without those of tokio's pool: there are 16 at most, and they end when they had nothing to do for 10 s."""
    names = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/comm") as comm:
                names.append(comm.read().strip())
        except FileNotFoundError:
            pass
    return collections.Counter(name for name in names if not name.startswith("tokio-"))


def processes(known):
    """All but those that are known, in this pid namespace: their command lines."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as cmdline:
                words = cmdline.read().replace("\0", " ").strip()
            if int(pid) not in known:
                found.append(words or f"zombie {pid}")
        except (FileNotFoundError, ProcessLookupError):
            pass
    return collections.Counter(found)


def files(state):
    return collections.Counter(os.path.relpath(os.path.join(place, name), state) for place, dirs, names in os.walk(state) for name in [*dirs, *names])


def cgroups(ids):
    """Those of the VMs with these ids: the host's cgroups are for all of it."""
    return collections.Counter(os.path.join(place, name) for place, dirs, _ in os.walk("/sys/fs/cgroup") for name in dirs if name.rsplit("-", 1)[0] in ids)


def nft():
    """Objects of nftables: tables, chains, rules, sets, and elements of those."""
    if not shutil.which("nft"):
        return collections.Counter()
    answer = subprocess.run(["nft", "-j", "list", "ruleset"], check=True, stdout=subprocess.PIPE)
    counts = collections.Counter()
    for entry in json.loads(answer.stdout)["nftables"]:
        for kind, what in entry.items():
            counts[kind] += kind != "metainfo"
            counts["element"] += len(what.get("elem", ())) if isinstance(what, dict) else 0
    return counts


def mounts():
    with open("/proc/self/mountinfo") as lines:
        return collections.Counter(line.split(" - ")[0].split(" ", 3)[3] for line in lines)


def left(agent, ids):
    """Everything that could be left behind, by kind and name."""
    pid = agent.process.pid
    return {
        "descriptors": descriptors(pid),
        "threads": threads(pid),
        "processes": processes({1, os.getpid(), pid}),
        "files": files(agent.state),
        "cgroups": cgroups(ids),
        "network devices": collections.Counter(name for _, name in socket.if_nameindex()),
        "nft objects": nft(),
        "mounts": mounts(),
    }
