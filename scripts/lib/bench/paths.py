"""The cases of the data path: what the guest does in each, what of it is the figure, and what counts as one request.

A name says all: randread-4k-d32 (mix, size, requests in flight), tcp-out-64k-s4 (direction as the guest sees it, size of a write, streams)."""

import re

KINDS = ("block", "net", "vsock")
SIZES = {"64": 64, "1460": 1460, "4k": 4096, "64k": 65536, "1m": 1 << 20}
# What UDP over IPv4 can carry.
UDP_MAX = 65_507
DEPTHS = (1, 8, 32, 128)
MIXES = {
    "randread": "--rw=randread",
    "randwrite": "--rw=randwrite",
    "randrw": "--rw=randrw --rwmixread=70",
    "fdatasync": "--rw=randwrite --fdatasync=1",
}
# What is run unless others are asked for: a cut through all of them in each direction.
USUAL = {
    "block": "randread-4k-d1 randread-4k-d8 randread-4k-d32 randread-4k-d128 randwrite-4k-d1 randwrite-4k-d32 randrw-4k-d32 fdatasync-4k-d1 "
    "fdatasync-4k-d32 randread-64k-d1 randread-64k-d32 randwrite-64k-d32 randread-1m-d8 randwrite-1m-d8",
    "net": "tcp-out-64-s1 tcp-out-1460-s1 tcp-out-64k-s1 tcp-out-64k-s4 tcp-in-64-s1 tcp-in-1460-s1 tcp-in-64k-s1 tcp-in-64k-s4 "
    "udp-out-64-s1 udp-out-1460-s1 udp-out-64k-s1 udp-in-64-s1 udp-in-1460-s1 udp-in-64k-s1 rtt",
    "vsock": "vsock-out vsock-in vsock-rtt",
}


def all_cases(kind):
    """Every name of this kind."""
    if kind == "block":
        return [f"{mix}-{size}-d{depth}" for mix in MIXES for size in ("4k", "64k", "1m") for depth in DEPTHS]
    if kind == "net":
        return [f"{protocol}-{way}-{size}-s{streams}" for protocol in ("tcp", "udp") for way in ("out", "in") for size in ("64", "1460", "64k") for streams in (1, 4)] + ["rtt"]
    return USUAL["vsock"].split()


def kind_of(case):
    return "vsock" if case.startswith("vsock") else "net" if case.split("-")[0] in ("tcp", "udp", "rtt") else "block"


def unit(case):
    """Of the figure; and of what exits and calls are counted for."""
    kind, words = kind_of(case), case.split("-")
    if kind == "block":
        return "requests/s", "request"
    if words[0] == "tcp" or case in ("vsock-out", "vsock-in"):
        return "Mbit/s", "64 KiB"
    return ("packets/s", "packet") if words[0] == "udp" else ("round trips/s", "round trip")


def fio(case, file, seconds, jobs):
    """The words that run it, whether in a guest or on the host itself."""
    mix, size, depth = case.split("-")
    share = max(1, int(depth[1:]) // jobs)
    split = f"--numjobs={jobs} --group_reporting --cpus_allowed={','.join(map(str, range(jobs)))} --cpus_allowed_policy=split " if jobs > 1 else ""
    return (f"fio --name=x --filename={file} --ioengine=libaio --thread --time_based --runtime={seconds} --minimal --norandommap --randrepeat=1 "
            f"--invalidate=0 {split}{MIXES[mix]} --bs={size} --iodepth={share}")


def iperf(case, host, seconds):
    protocol, way, size, streams = case.split("-")
    bytes_ = min(SIZES[size], UDP_MAX) if protocol == "udp" else SIZES[size]
    return f"iperf3 -4 -c {host} -i 0 -f k -t {seconds} -l {bytes_} -P {streams[1:]}" + (" -u -b 0" if protocol == "udp" else "") + (" -R" if way == "in" else "")


def guest(case, host, seconds, jobs):
    """What the guest runs. Where the host does the work (rtt, vsock-rtt), it only has to be there."""
    if kind_of(case) == "block":
        return fio(case, "/dev/vdb", seconds, jobs) + " --direct=1"
    return {
        "rtt": f"sleep {seconds + 1}",
        "vsock-out": "vsock connect 5000 </dev/zero >/dev/null 2>&1",
        "vsock-in": "vsock connect 5001 </dev/null >/dev/null 2>&1",
        "vsock-rtt": "vsock echo 5002 -n 1 >/dev/null 2>&1",
    }.get(case) or iperf(case, host, seconds)


def figure(case, output):
    """What fio or iperf3 printed ('|' for the ends of lines): the figure, the requests that it took, and more that is worth keeping."""
    if kind_of(case) == "block":
        row = next(row for row in output.split("|") if row.count(";") > 50).split(";")
        # fio's terse format, version 3: KiB, KiB/s, requests/s and ms of reads, and the same of writes 41 fields on.
        kib, rate = float(row[5]) + float(row[46]), float(row[7]) + float(row[48])
        of = 0 if float(row[7]) >= float(row[48]) else 41
        p99 = next((float(field.split("=")[1]) for field in row[17 + of : 37 + of] if field.startswith("99.0")), 0.0)
        return rate, kib * 1024 / SIZES[case.split("-")[1]], {"p99_us": p99}
    rows = [row for row in output.split("|") if "receiver" in row]
    row = next((row for row in rows if "SUM" in row), rows[0])
    begin, end = re.search(r"([\d.]+)-([\d.]+)\s+sec", row).groups()
    seconds = float(end) - float(begin)
    if case.startswith("tcp"):
        mbit = float(re.search(r"([\d.]+) Kbits/sec", row)[1]) / 1000
        return mbit, mbit * 1e6 / 8 * seconds / 65536, {}
    lost, total = re.search(r"(\d+)/(\d+) \(", row).groups()
    got = int(total) - int(lost)
    return got / seconds, int(total) if "-out-" in case else got, {"lost": int(lost)}
