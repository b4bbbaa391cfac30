"""Tables for a terminal or a README."""


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
