"""Tables for a terminal or a README, and the records they are made of."""

import json


def number(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def show(header, rows, markdown=False, words=(0,)):
    """Prints a table of strings. Columns in `words` begin on the left, the others are figures."""
    if markdown:
        print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
        for row in rows:
            print("| " + " | ".join(row) + " |")
        return
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) if column in words else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths))).rstrip())


def record_of(options):
    """The record in the file that a report was given; the load of the machine outside becomes part of it, if there is a file of that."""
    with open(options.file) as file:
        record = json.load(file)
    if options.load:
        with open(options.load) as load:
            record["load"] = [float(line.split()[0]) for line in load if line.strip()]
        with open(options.file, "w") as file:
            json.dump(record, file, indent=1)
    return record
