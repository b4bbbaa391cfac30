"""path_report.py: prints the tables of a file of samples of scripts/bench --path, and draws them."""

import argparse
import re
import statistics
import sys

import paths
import picture
from tables import number, record_of, show

WANTED = 1.25


def ours(name):
    return name.startswith("yun")


def medians(record, what="value"):
    """By case and VMM, in the order in which they were run."""
    values = {}
    for sample in record["samples"]:
        if what in sample:
            values.setdefault(sample["case"], {}).setdefault(sample["vmm"], []).append(sample[what])
    return {case: {name: statistics.median(of) for name, of in names.items()} for case, names in values.items()}


def words(case):
    """A case for people: its queues only where there are several."""
    return re.sub(r"-q1$", "", case)


def bare(case):
    return re.sub(r"-q\d+$", "", case)


def table(figures, kind):
    cases = [case for case in figures if paths.kind_of(case) == kind]
    names = list(dict.fromkeys(name for case in cases for name in sorted(figures[case], key=lambda name: (name != "native", not ours(name), name))))
    rows, reached = [], 0
    for case in cases:
        of = figures[case]
        best = max((value for name, value in of.items() if not ours(name) and name != "native"), default=None)
        own = max((value for name, value in of.items() if ours(name)), default=None)
        ratio = own / best if own and best else None
        reached += ratio is not None and ratio >= WANTED
        rows.append([words(case), paths.unit(bare(case))[0], *(number(of[name]) if name in of else "" for name in names), "" if ratio is None else f"{ratio:.2f}"])
    return ["", "", *names, "best of ours / best peer"], rows, reached


def best_of(values, mine):
    """The best of ours, or of the peers, and whose it is."""
    of = {name: value for name, value in values.items() if name != "native" and ours(name) == mine}
    return max(of.items(), key=lambda item: item[1], default=(None, None))


def summary(record):
    """A line for each case: the native figure, our best, each peer's best, and what a request costs with the best of ours and of theirs."""
    figures = medians(record)
    by = {what: medians(record, what) for what in ("exits", "interrupts", "calls")}
    variant = lambda name, base: f" ({name.removeprefix(base).strip('-')})" if name.removeprefix(base).strip("-") else ""
    grouped = lambda value: f"{value:,.0f}" if value >= 100 else number(value)
    rows = []
    for case, of in figures.items():
        own, peer = best_of(of, True), best_of(of, False)
        if own[0] is None or peer[0] is None:
            continue
        cells = [f"{words(case)}, {paths.unit(bare(case))[0]}", grouped(of["native"]) if "native" in of else "", grouped(own[1]) + variant(own[0], "yun-pci")]
        for base in ("firecracker", "qemu-microvm", "qemu-q35"):
            name, value = max(((name, value) for name, value in of.items() if name.startswith(base)), key=lambda item: item[1], default=("", None))
            cells.append("" if value is None else grouped(value) + variant(name, base))
        cells.append(f"{own[1] / peer[1]:.2f}")
        for what in by:
            cost = by[what].get(case, {})
            cells.append(", ".join(number(cost[name]) if name in cost else "-" for name in (own[0], peer[0])))
        rows.append(cells)
    header = ["", "native", "yun", "Firecracker", "QEMU microvm", "QEMU q35", "yun / best peer", "exits: yun, best peer", "interrupts", "system calls"]
    # Who took no part has no column.
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return [header[column] for column in kept], [[row[column] for column in kept] for row in rows]


def costs(record, kind):
    """Exits, interrupts and system calls for each request."""
    by = {what: medians(record, what) for what in ("exits", "interrupts", "calls")}
    cases = [case for case in by["exits"] if paths.kind_of(case) == kind]
    names = list(dict.fromkeys(name for case in cases for name in sorted(by["exits"][case], key=lambda name: (not ours(name), name))))
    cell = lambda case, name: " / ".join(number(by[what][case][name]) if name in by[what].get(case, {}) else "-" for what in by)
    rows = [[words(case), paths.unit(bare(case))[1], *(cell(case, name) if name in by["exits"][case] else "" for name in names)] for case in cases]
    return ["exits / interrupts / system calls", "for each", *names], rows


def profile(record, case, kind, least=0.02):
    """What a request of a case costs with each VMM: the reasons of its exits, the registers, ports and addresses that they were about,
    the interrupts given to the guest, and the VMM's system calls. Medians over rounds; what comes less often than `least` is left out."""
    by = {}
    for sample in record["samples"]:
        if sample["case"] == case and sample.get("profile", {}).get(kind):
            by.setdefault(sample["vmm"], []).append(sample["profile"][kind])
    median = lambda name, of: statistics.median(one.get(name, 0) for one in of)
    names = {vmm: dict.fromkeys(name for one in of for name in one) for vmm, of in by.items()}
    return {vmm: [f"{number(median(name, by[vmm]))} {name}" for name in of if median(name, by[vmm]) >= least] for vmm, of in names.items()}


def profiles(record):
    """Lines for each case that was profiled."""
    for case in profiled(record):
        print(f"\n{words(case)}, each {paths.unit(bare(case))[1]}:")
        for kind in ("exits", "msr", "port", "mmio", "interrupts", "calls"):
            for vmm, parts in profile(record, case, kind).items():
                print(f"  {kind:10} {vmm:18} {', '.join(parts)}")


def profiled(record):
    return dict.fromkeys(sample["case"] for sample in record["samples"] if "profile" in sample)


def profile_summary(record):
    """A line for the best of ours and one for the best peer in each case that was profiled: the most frequent reasons of exits and calls."""
    figures, rows = medians(record), []
    for case in profiled(record):
        for name, value in (best_of(figures[case], mine) for mine in (True, False)):
            if name:
                parts = [", ".join(profile(record, case, kind, 0.05).get(name, [])[:5]) for kind in ("exits", "calls")]
                rows.append([f"{words(case)}, each {paths.unit(bare(case))[1]}", name, number(value), *parts])
    return ["", "", "figure", "exits", "system calls"], rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--pictures", help="directory for a picture of each path")
    parser.add_argument("--load", help="file with the load of the machine outside: average, running/all, a line each")
    parser.add_argument("file")
    options = parser.parse_args()
    record = record_of(options)
    figures = medians(record)
    if options.summary:
        show(*summary(record), options.markdown)
    for kind in paths.KINDS:
        header, rows, reached = table(figures, kind)
        if not rows:
            continue
        if options.pictures:
            picture.draw(f"{options.pictures}/{kind}.svg", kind, {words(case): of for case, of in figures.items() if paths.kind_of(case) == kind})
        if options.summary:
            print(f"\n{kind}: {reached} of {len(rows)} at least {WANTED} times the best peer")
            continue
        show(header, rows, options.markdown, words=(0, 1))
        print(f"\n{reached} of {len(rows)} at least {WANTED} times the best peer\n")
        show(*costs(record, kind), options.markdown, words=(0, 1))
        print()
    if options.summary and profiled(record):
        show(*profile_summary(record), options.markdown, words=(0, 1, 3, 4))
    else:
        profiles(record)
    load = record.get("load")
    print(f"{record['rounds']} rounds in {record['seconds']} s, {record['cpus']} CPUs, kernel {record['kernel']}" + (f"; load of the machine {statistics.median(load):.1f} (median)" if load else ""))
    failed = [sample for sample in record["samples"] if sample["case"] == "failed"]
    for sample in failed:
        print(f"failed: {sample['vmm']} in round {sample['round'] + 1}: {sample['error'].splitlines()[0]}")
    sys.exit(1 if failed else 0)


main()
