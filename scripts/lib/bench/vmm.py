"""The VMMs that take part: how each is started, given the same machine, and told to run it."""

import copy
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time

MEMORY_MIB = 256


class Guest:
    """What every VMM is asked to run."""

    mac = "06:00:ac:14:00:02"
    cid = 3

    def __init__(self, images, drive, tap, cmdline, vcpus=1, memory_mib=MEMORY_MIB, data=(), vsock=False):
        self.kernel = f"{images}/vmlinux"
        self.initrd = f"{images}/initrd.img"
        self.drive = drive
        self.tap = tap
        self.cmdline = cmdline
        self.vcpus = vcpus
        self.memory_mib = memory_mib
        # Writable drives beside the first: they get as many queues as there are vCPUs from whoever can.
        self.data = data
        self.vsock = vsock


class UnixHttp(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Console:
    """Reads the guest's console as it comes; keeps each line with the moment it was complete."""

    def __init__(self, pipe):
        self.lines = []
        self.ended = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self.thread.start()

    def _read(self, pipe):
        rest = b""
        while True:
            chunk = os.read(pipe.fileno(), 65536)
            now = time.monotonic()
            with self.changed:
                *lines, rest = (rest + chunk).split(b"\n")
                self.lines += [(now, line.decode(errors="replace").strip()) for line in lines]
                self.ended = not chunk
                self.changed.notify_all()
            if not chunk:
                return

    def wait(self, text, seconds):
        """The moment and the line that contains `text`, or an error that shows what came instead."""
        deadline = time.monotonic() + seconds
        with self.changed:
            seen = 0
            while True:
                for moment, line in self.lines[seen:]:
                    if text in line:
                        return moment, line
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if self.ended or left <= 0:
                    tail = "\n".join(line for _, line in self.lines[-15:])
                    raise RuntimeError(f"'{text}' did not come: {'VMM ended' if self.ended else 'too late'}\n{tail}")
                self.changed.wait(left)


def remove(path):
    if os.path.exists(path):
        os.unlink(path)


class Vmm:
    """One VMM process. `start` returns when it could be told to run the guest, `run` runs it and returns the moment it was told."""

    name = ""
    transport = ""

    def __init__(self, binary, work):
        self.binary = binary
        self.work = work
        self.process = None
        self.console = None

    def spawn(self, arguments):
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return self.process.pid

    def watch(self):
        self.console = Console(self.process.stdout)

    def last_words(self):
        """Of a VMM that ended by itself: its status, and what it logged last."""
        if self.process is None or self.process.poll() is None:
            return ""
        log = f"{self.work}/log"
        lines = open(log, errors="replace").read().splitlines() if os.path.exists(log) else []
        return f" (status {self.process.returncode}{': ' + lines[-1] if lines else ''})"

    def connect(self, port):
        """A connection to `port` of the guest, which listens, or will soon."""
        deadline = time.monotonic() + 30
        while True:
            connection = socket.socket(self.family)
            connection.settimeout(10)
            if self.call(connection, port):
                return connection
            connection.close()
            if time.monotonic() > deadline:
                raise RuntimeError(f"nobody listens on the guest's port {port}")
            time.sleep(0.05)

    def end(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        if self.console:
            self.console.thread.join()
        self.process.stdout.close()
        self.process = None


class Rest(Vmm):
    """Firecracker, or anything that answers to its API."""

    options = ()
    # What it is asked for beside what it would do anyway.
    drive, interface, vsock = {}, {}, {}

    def launch(self):
        """Starts the process; the moment before that."""
        self.socket = f"{self.work}/api.sock"
        remove(self.socket)
        open(f"{self.work}/log", "w").close()
        before = time.monotonic()
        self.spawn([self.binary, "--api-sock", self.socket, "--id", "bench", "--log-path", f"{self.work}/log", "--level", "Warn", *self.options])
        return before

    def answer(self):
        """Waits until GET / is answered; the moment it was."""
        while True:
            try:
                self.http = UnixHttp(self.socket)
                self.http.connect()
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended at once") from None
                time.sleep(0.0005)
        self.http.request("GET", "/")
        reply = self.http.getresponse()
        reply.read()
        moment = time.monotonic()
        if reply.status != 200:
            raise RuntimeError(f"{self.name}: GET / answered {reply.status}")
        return moment

    def put(self, path, body):
        self.http.request("PUT", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = self.http.getresponse()
        text = reply.read()
        if reply.status != 204:
            raise RuntimeError(f"{self.name}: PUT {path} answered {reply.status} {text}")

    def run(self, guest):
        self.launch()
        self.watch()
        self.answer()
        self.put("/boot-source", {"kernel_image_path": guest.kernel, "initrd_path": guest.initrd, "boot_args": guest.cmdline})
        self.put("/machine-config", {"vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib})
        self.put("/drives/d", {"drive_id": "d", "path_on_host": guest.drive, "is_root_device": False, "is_read_only": True})
        for number, file in enumerate(guest.data):
            name = f"data{number}"
            self.put(f"/drives/{name}", {"drive_id": name, "path_on_host": file, "is_root_device": False, "cache_type": "Writeback", **self.drive})
        self.put("/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": guest.tap, "guest_mac": guest.mac, **self.interface})
        self.uds = f"{self.work}/vsock"
        if guest.vsock:
            remove(self.uds)
            self.put("/vsock", {"guest_cid": guest.cid, "uds_path": self.uds, **self.vsock})
        before = time.monotonic()
        self.put("/actions", {"action_type": "InstanceStart"})
        return before

    def listen(self, port):
        """A socket that the guest's connections to `port` of the host come to."""
        remove(f"{self.uds}_{port}")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self.uds}_{port}")
        listener.listen()
        return listener

    family = socket.AF_UNIX

    def call(self, connection, port):
        connection.connect(self.uds)
        connection.sendall(f"CONNECT {port}\n".encode())
        return connection.recv(64).startswith(b"OK")


class YunMmio(Rest):
    name, transport = "yun-mmio", "mmio"


class YunPci(Rest):
    name, transport, options = "yun-pci", "pci", ("--enable-pci",)


class YunPciAsync(YunPci):
    """Its drives' I/O by io_uring."""

    name, drive = "yun-pci-async", {"io_engine": "Async"}


class YunPciVhost(YunPci):
    """Its network by the kernel's vhost."""

    name, interface = "yun-pci-vhost", {"vhost": True}


class YunPciVhostPoll(YunPciVhost):
    """The kernel's vhost looks for work before it sleeps."""

    name, interface = "yun-pci-vhost-poll", {"vhost": True, "poll_us": 200}


class YunPciPoll(YunPci):
    """Its threads look for work before they sleep."""

    name, drive, interface, vsock = "yun-pci-poll", {"poll_us": 200}, {"poll_us": 200}, {"poll_us": 200}


class YunPciOther(YunPci):
    """Another build."""

    name = "yun-pci-other"

    def __init__(self, binary, work):
        super().__init__(f"{binary}-other", work)


class YunPciVhostOther(YunPciOther):
    """Another build, its network by the kernel's vhost."""

    name, interface = "yun-pci-vhost-other", YunPciVhost.interface


class YunBare(Rest):
    """Without seccomp and outside any jail: what confinement is compared with."""

    name, transport, options = "yun-bare", "mmio", ("--no-seccomp",)


class YunJailed(Rest):
    """As a tenant's runs: in a jail of its own, started by yun-jailer, as a user of its own."""

    name, transport = "yun-jailed", "mmio"
    UID = "47140"

    def launch(self):
        base = f"{os.path.dirname(self.binary)}/jails"
        root = f"{base}/yun/bench/root"
        self.socket = f"{root}/run/firecracker.socket"
        os.makedirs(root, exist_ok=True)
        before = time.monotonic()
        self.spawn([f"{self.binary}-jailer", "--id", "bench", "--exec-file", self.binary, "--uid", self.UID, "--gid", self.UID, "--chroot-base-dir", base, "--", "--level", "Warn"])
        return before

    def run(self, guest):
        """The guest's files are in the jail by other names."""
        inside = copy.copy(guest)
        places = {"kernel": guest.kernel, "initrd": guest.initrd, "drive": guest.drive}
        base = f"{os.path.dirname(self.binary)}/jails/yun/bench/root"
        os.makedirs(base, exist_ok=True)
        for name, place in places.items():
            if not os.path.exists(f"{base}/{name}"):
                os.link(place, f"{base}/{name}")
            os.chmod(place, 0o644)
            setattr(inside, name, f"/{name}")
        return super().run(inside)

    def end(self):
        super().end()
        # The janitor of the jail goes first.
        deadline = time.monotonic() + 10
        while os.path.exists(self.socket) and time.monotonic() < deadline:
            time.sleep(0.005)


class Firecracker(Rest):
    name, transport = "firecracker", "mmio"


class FirecrackerAsync(Firecracker):
    name, drive = "firecracker-async", {"io_engine": "Async"}


class Qemu(Vmm):
    """Its data path at its best: an I/O thread for each drive, io_uring; and the kernel's vhost where it is asked for."""

    machine = ()
    block = net = vsock = ""
    vhost = "off"

    def run(self, guest):
        words = ["-object", "iothread,id=io", "-drive", f"id=d,file={guest.drive},format=raw,if=none,read-only=on,aio=io_uring", "-device", f"{self.block},drive=d,iothread=io"]
        for number, file in enumerate(guest.data):
            queues = f",num-queues={guest.vcpus}" if guest.vcpus > 1 else ""
            words += ["-object", f"iothread,id=io{number}", "-drive", f"id=data{number},file={file},format=raw,if=none,aio=io_uring,cache=writeback"]
            words += ["-device", f"{self.block},drive=data{number},iothread=io{number}{queues}"]
        if guest.vsock:
            words += ["-device", f"{self.vsock},guest-cid={guest.cid}"]
        before = time.monotonic()
        self.spawn([
            self.binary, "-enable-kvm", "-cpu", "host", "-smp", str(guest.vcpus), "-m", str(guest.memory_mib), "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
            *self.machine, "-kernel", guest.kernel, "-initrd", guest.initrd, "-append", guest.cmdline, *words,
            "-netdev", f"tap,id=n,ifname={guest.tap},script=no,downscript=no,vhost={self.vhost}", "-device", f"{self.net},netdev=n,mac={guest.mac}",
        ])
        self.cid = guest.cid
        self.watch()
        return before

    def listen(self, port):
        """As of the others; here the kernel's own sockets are behind it."""
        listener = socket.socket(socket.AF_VSOCK)
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen()
        return listener

    family = socket.AF_VSOCK

    def call(self, connection, port):
        return connection.connect_ex((self.cid, port)) == 0


class QemuMicrovm(Qemu):
    name, transport = "qemu-microvm", "mmio"
    machine = ("-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,isa-serial=on,auto-kernel-cmdline=off", "-global", "virtio-mmio.force-legacy=false")
    block, net, vsock = "virtio-blk-device", "virtio-net-device", "vhost-vsock-device"


class QemuQ35(Qemu):
    name, transport = "qemu-q35", "pci"
    machine = ("-M", "q35")
    block, net, vsock = "virtio-blk-pci,disable-legacy=on", "virtio-net-pci,disable-legacy=on,romfile=", "vhost-vsock-pci"


class QemuMicrovmVhost(QemuMicrovm):
    name, vhost = "qemu-microvm-vhost", "on"


class QemuQ35Vhost(QemuQ35):
    name, vhost = "qemu-q35-vhost", "on"


class QemuQ35VhostPoll(QemuQ35Vhost):
    """vhost looks for work before it sleeps."""

    name, vhost = "qemu-q35-vhost-poll", "on,poll-us=200"


ALL = (YunMmio, YunPci, Firecracker, QemuMicrovm, QemuQ35)
# To be asked for by name.
CONFINEMENT = (YunBare, YunMmio, YunJailed)
# Who takes part in measuring a path, each at its best there.
PATHS = {
    "block": (YunMmio, YunPci, YunPciAsync, YunPciPoll, Firecracker, FirecrackerAsync, QemuMicrovm, QemuQ35),
    "net": (YunMmio, YunPci, YunPciPoll, YunPciVhost, YunPciVhostPoll, Firecracker, QemuMicrovm, QemuQ35, QemuQ35Vhost, QemuQ35VhostPoll),
    "vsock": (YunMmio, YunPci, YunPciPoll, Firecracker, QemuMicrovm, QemuQ35),
}
KNOWN = {kind.name: kind for kind in (*ALL, *CONFINEMENT, *(kind for kinds in PATHS.values() for kind in kinds), QemuMicrovmVhost, YunPciOther, YunPciVhostOther)}
