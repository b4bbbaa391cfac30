"""report.py: prints the table of a file of samples, called by scripts/bench."""

import argparse
import statistics
import sys

from tables import number, record_of, show

YUN = {"yun-mmio": "mmio", "yun-pci": "pci", "yun-jailed": "mmio"}
# Without confinement: what the others lose by it may be 3%, or 300 KiB.
BARE, LOSS, LOSS_KIB = "yun-bare", 0.03, 300
PEERS = {"firecracker": "mmio", "qemu-microvm": "mmio", "qemu-q35": "pci"}
# Sample's case, words, unit, whether less is better, what Yun is to reach against Firecracker (per transport) or absolutely, or against the best peer.
ROWS = [
    ("api-wall", "process start to API answer", "ms", True, {}),
    ("api-cpu", "  its CPU time", "ms", True, {"firecracker": {"mmio": 0.6, "pci": 0.6}}),
    ("fixed-cpu", "  the same at fixed addresses", "ms", True, {}),
    ("api-faults", "  page faults", "", True, {}),
    ("boot-wall", "InstanceStart to guest init", "ms", True, {"firecracker": {"mmio": 0.69, "pci": 0.75}}),
    ("boot-cpu", "  CPU time of the process", "ms", True, {}),
    ("boot-exits", "  KVM exits", "", True, {}),
    ("memory", "memory outside guest RAM", "KiB", True, {"value": 2.6 * 1024}),
    ("memory-private", "  private to the process", "KiB", True, {}),
    ("idle", "CPU of an idle guest", "%", True, {}),
    ("read1", "4 KiB random read, depth 1", "/s", False, {"best": 1.0}),
    ("read32", "4 KiB random read, depth 32", "/s", False, {"best": 1.0}),
    ("seqread", "128 KiB sequential read", "MiB/s", False, {"best": 1.0}),
    ("tcp-out", "TCP from the guest", "Mbit/s", False, {"best": 1.0}),
    ("tcp-in", "TCP to the guest", "Mbit/s", False, {"best": 1.0}),
    ("udp-out", "64-byte UDP from the guest", "/s", False, {"best": 1.0}),
    ("udp-in", "64-byte UDP to the guest", "/s", False, {"best": 1.0}),
]


def table(record, best_of):
    """Header and rows, all strings. Of the medians, or of each one's best sample."""
    values = {}
    for sample in record["samples"]:
        if "value" in sample:
            values.setdefault(sample["case"], {}).setdefault(sample["vmm"], []).append(sample["value"])
    ran = [name for name in (BARE, *YUN, *PEERS) if any(name in of for of in values.values())]
    ours = [name for name in ran if name in YUN]
    others = ("Firecracker", "best") if any(name in PEERS for name in ran) else ()
    header = ["", "", *ran] + [f"{name.removeprefix('yun-')} vs {what}" for name in ours for what in others]
    header += [f"{name} vs bare" for name in ours if BARE in ran] + ["to reach"]
    rows = []
    for case, words, unit, less, goal in ROWS:
        if case not in values:
            continue
        pick = (min if less else max) if best_of else statistics.median
        medians = {name: pick(of) for name, of in values[case].items()}
        wide = set() if best_of else {name for name, of in values[case].items() if any(abs(value - medians[name]) > medians[name] / 4 for value in of)}
        row = [words, unit] + [number(medians[name]) + ("~" if name in wide else "") if name in medians else "" for name in ran]
        reached = []
        for name in ours:
            same = [medians[peer] for peer, transport in PEERS.items() if peer in medians and transport == YUN[name]]
            best = (min if less else max)(same, default=None)
            for what, peer in (("firecracker", medians.get("firecracker")), ("best", best)) if others else ():
                ratio = medians[name] / peer if peer and name in medians else None
                row.append("" if ratio is None else f"{ratio:.2f}")
                wanted = goal.get(what)
                wanted = wanted.get(YUN[name]) if isinstance(wanted, dict) else wanted
                if wanted and ratio:
                    good = ratio <= wanted if less else ratio >= wanted
                    reached.append(f"{YUN[name]} {wanted} {'yes' if good else 'NO'}")
            if "value" in goal and name in medians:
                reached.append(f"{YUN[name]} {number(goal['value'])} {'yes' if medians[name] <= goal['value'] else 'NO'}")
        for name in ours if BARE in medians else ():
            lost = medians[name] / medians[BARE] - 1 if less else 1 - medians[name] / medians[BARE]
            row.append(f"{medians[name] / medians[BARE]:.3f}")
            good = medians[name] - medians[BARE] <= LOSS_KIB if unit == "KiB" else lost <= LOSS
            reached.append(f"{name} loses {f'{medians[name] - medians[BARE]:.0f} KiB' if unit == 'KiB' else f'{lost:.1%}'} {'yes' if good else 'NO'}")
        rows.append(row + [", ".join(reached)])
    return header, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--load", help="file with the load of the machine outside: average, running/all, a line each")
    parser.add_argument("file")
    options = parser.parse_args()
    record = record_of(options)
    header, rows = table(record, options.best)
    show(header, rows, options.markdown, words=(0, 1, len(header) - 1))
    spins = [sample["spin_ms"] for sample in record["samples"] if "spin_ms" in sample]
    failed = [sample for sample in record["samples"] if sample["case"] == "failed"]
    print(f"\n{record['rounds']} rounds in {record['seconds']} s, {record['cpus']} CPUs, kernel {record['kernel']}", end="")
    if spins:
        print(f"; the host's speed varied by {(max(spins) / min(spins) - 1) * 100:.0f}%", end="")
    if record.get("load"):
        load = record["load"]
        noisy = statistics.median(load) > record["cpus"] * 1.6
        print(f"; load of the machine {load[0]:.1f} at the start, {load[-1]:.1f} at the end, {statistics.median(load):.1f} median{': NOISY, others were at work' if noisy else ''}", end="")
    print()
    for sample in failed:
        print(f"failed: {sample['vmm']} in round {sample['round'] + 1}: {sample['error'].splitlines()[0]}")
    sys.exit(1 if failed else 0)


main()
