"""A microVM in its jail, with limits; and the cgroups that it and others have."""

import collections
import os
import re
import subprocess
import time

import vmm  # of scripts/bench

PARENT = "yun-neighbours"
# The attacker, whatever its VMM's end, and all on the host that deals with it.
ATTACKERS = "attackers"
PERIOD_US = 100_000


def hierarchy():
    """Where cgroups of version 2 are mounted, with what the limits need."""
    with open("/proc/mounts") as mounts:
        for line in mounts:
            _, place, kind, *_ = line.split()
            if kind == "cgroup2":
                with open(f"{place}/cgroup.controllers") as file:
                    missing = {"cpu", "memory", "pids"} - set(file.read().split())
                if not missing:
                    return place
    raise SystemExit("no cgroup hierarchy of version 2 has the controllers cpu, memory and pids: this host can not be measured")


class Group:
    """A cgroup below PARENT: that of a jail, which its jailer makes and removes, or one made here for what runs beside."""

    def __init__(self, name):
        self.path = f"{hierarchy()}/{PARENT}/{name}".rstrip("/")

    def make(self, **values):
        os.makedirs(self.path, exist_ok=True)
        for file, value in values.items():
            with open(f"{self.path}/{file.replace('_', '.', 1)}", "w") as setting:
                setting.write(value)
        return self

    def popen(self, words, begun=None):
        """A process that is in it at once, or once it has written a line that begins with `begun`: it might not get going on so little."""
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if begun else subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if begun and not process.stdout.readline().startswith(begun.encode()):
            raise RuntimeError(f"{words} did not begin: {process.wait()}")
        with open(f"{self.path}/cgroup.procs", "w") as procs:
            procs.write(str(process.pid))
        return process

    def read(self, file):
        """A file of names and numbers; empty while the cgroup is not there."""
        try:
            with open(f"{self.path}/{file}") as values:
                return {name: int(value) for name, value in (line.split() for line in values)}
        except (FileNotFoundError, OSError):
            return {}

    def freeze(self, frozen):
        """Stops all that is in it, or lets it go on."""
        with open(f"{self.path}/cgroup.freeze", "w") as freeze:
            freeze.write("1" if frozen else "0")

    def cpu_s(self):
        return self.read("cpu.stat").get("usage_usec", 0) / 1e6


def prepare():
    """The parent of all, with the controllers that its children need."""
    top = hierarchy()
    os.makedirs(f"{top}/{PARENT}/{ATTACKERS}", exist_ok=True)
    with open(f"{top}/cgroup.controllers") as file:
        offered = file.read().split()
    for place in (top, f"{top}/{PARENT}", f"{top}/{PARENT}/{ATTACKERS}"):
        with open(f"{place}/cgroup.subtree_control", "w") as control:
            control.write(" ".join(f"+{name}" for name in ("cpu", "cpuset", "memory", "pids", "io") if name in offered))


class Jailed(vmm.Rest):
    """yun-vmm, started by yun-jailer: a user of its own, a cgroup with limits, its files in a chroot."""

    def __init__(self, place, name, uid, vcpus, cpus, memory_mib, memory_max_mib, settings=(), console=False):
        super().__init__(f"{place}/yun-vmm", place)
        self.name, self.uid, self.vcpus, self.memory_mib, self.console_is_file = name, uid, vcpus, memory_mib, console
        self.parent = f"{PARENT}/{ATTACKERS}" if console else PARENT
        self.cgroup = Group(f"{ATTACKERS}/{name}" if console else name)
        self.settings = [f"cpu.max={int(cpus * PERIOD_US)} {PERIOD_US}", "cpu.weight=100", f"memory.max={memory_max_mib << 20}", "pids.max=64", *settings]
        self.root = f"{place}/jails/yun-vmm/{name}/root"
        self.socket = f"{self.root}/run/firecracker.socket"

    def own(self, name, source=None):
        """A file of the jail that its user may write: a link to `source`, or empty."""
        path = f"{self.root}/{name}"
        if os.path.exists(path):
            os.unlink(path)
        if source:
            os.link(source, path)
        else:
            open(path, "x").close()
        os.chown(path, self.uid, self.uid)

    def size(self, name):
        return os.stat(f"{self.root}/{name}").st_size

    def logged(self):
        """What its log says most often, numbers aside."""
        with open(f"{self.root}/log", errors="replace") as log:
            texts = collections.Counter(re.sub(r"\d+", "N", line.partition("] ")[2])[:120].strip() for line in log)
        return dict(texts.most_common(12))

    def launch(self):
        os.makedirs(self.root, exist_ok=True)
        for shared in ("vmlinux", "initrd.img", "bench.ext4"):
            if not os.path.exists(f"{self.root}/{shared}"):
                os.link(f"{self.work}/{shared}", f"{self.root}/{shared}")
        self.own("data", f"{self.work}/{self.name}.data")
        self.own("script", f"{self.work}/{self.name}.script")
        self.own("log")
        if self.console_is_file:
            self.own("console")
        before = time.monotonic()
        self.spawn([
            f"{self.work}/yun-jailer", "--id", self.name, "--exec-file", self.binary, "--uid", str(self.uid), "--gid", str(self.uid),
            "--chroot-base-dir", f"{self.work}/jails", "--cgroup-version", "2", "--parent-cgroup", self.parent,
            *(word for setting in self.settings for word in ("--cgroup", setting)), "--", "--log-path", "/log", "--level", "Debug",
        ])
        return before

    def run(self, cmdline, tap, mac):
        """Starts it and its guest; vda is the guest's root, vdb its data, vdc what it is to do."""
        self.launch()
        self.watch()
        self.answer()
        self.put("/boot-source", {"kernel_image_path": "/vmlinux", "initrd_path": "/initrd.img", "boot_args": cmdline})
        self.put("/machine-config", {"vcpu_count": self.vcpus, "mem_size_mib": self.memory_mib})
        for name, file, fixed in (("a", "/bench.ext4", True), ("b", "/data", False), ("c", "/script", True)):
            self.put(f"/drives/{name}", {"drive_id": name, "path_on_host": file, "is_root_device": False, "is_read_only": fixed})
        self.put("/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": tap, "guest_mac": mac})
        self.put("/entropy", {})
        if self.console_is_file:
            self.put("/serial", {"serial_out_path": "/console"})
        self.put("/actions", {"action_type": "InstanceStart"})

    def last_words(self):
        """Of one that ended by itself: its status, the end of its log and of what its guest said."""
        with open(f"{self.root}/log", errors="replace") as log:
            lines = log.read().splitlines()[-12:]
        return "\n  ".join([f"status {self.process.wait(10)}", *lines, *(line for _, line in self.console.lines[-8:])])

    def lives(self):
        return self.process is not None and self.process.poll() is None

    def tell(self, line):
        """A line of input on the guest's console."""
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def hear(self, text, since, seconds):
        """Waits for `text` in the file of the console, after its first `since` bytes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with open(f"{self.root}/console", "rb") as console:
                console.seek(since)
                if text.encode() in console.read():
                    return
            if not self.lives():
                raise RuntimeError(f"{self.name}: its VMM ended with {self.process.returncode} before '{text}' came")
            time.sleep(0.2)
        with open(f"{self.root}/console", "rb") as console:
            console.seek(max(0, self.size("console") - 600))
            raise RuntimeError(f"{self.name}: '{text}' did not come; its console: {console.read().decode(errors='replace').strip()}")

    def end(self):
        super().end()
        # Its janitor comes after it; until then the jail is in use.
        deadline = time.monotonic() + 20
        while (os.path.exists(f"{self.root}/yun-vmm") or os.path.exists(self.cgroup.path)) and time.monotonic() < deadline:
            time.sleep(0.05)
