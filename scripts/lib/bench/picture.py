"""A picture of one path: a line for each case, a dot for each VMM, at its figure divided by the best peer's. Ours are filled."""

import math
from xml.sax.saxutils import escape

ROW, LEFT, WIDTH, TOP = 22, 170, 560, 58
COLOURS = ("#0b6e4f", "#1f9e89", "#35b779", "#6b4c9a", "#c0392b", "#e67e22", "#d4a017", "#7f8c8d")


def draw(file, title, figures):
    """Writes the SVG: `figures` are numbers by case and VMM; more is better."""
    names = sorted({name for of in figures.values() for name in of}, key=lambda name: (not name.startswith("yun"), name == "native", name))
    colour = {name: COLOURS[number % len(COLOURS)] if name != "native" else "#000000" for number, name in enumerate(names)}
    rows = {}
    for case, of in figures.items():
        best = max((value for name, value in of.items() if not name.startswith("yun") and name != "native"), default=0)
        if best:
            rows[case] = {name: math.log2(value / best) for name, value in of.items() if value > 0}
    # Native figures may lie far out: they are shown at the edge.
    inner = [value for of in rows.values() for name, value in of.items() if name != "native"]
    low, high = min(inner, default=-1) - 0.2, max(inner, default=1) + 0.4
    at = lambda value: LEFT + (min(max(value, low), high) - low) / (high - low) * WIDTH
    height = TOP + ROW * len(rows) + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{height}" font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="#ffffff"/><text x="8" y="18" font-size="14" font-weight="bold">{escape(title)}: figures divided by the best peer\'s</text>']
    x = 8
    for name in names:
        fill = colour[name] if name.startswith("yun") else "none"
        out.append(f'<circle cx="{x + 5}" cy="34" r="4.5" fill="{fill}" stroke="{colour[name]}" stroke-width="1.6"/><text x="{x + 14}" y="38" font-size="10">{escape(name)}</text>')
        x += 24 + 5.6 * len(name)
    for tick in (1 / 8, 1 / 4, 1 / 2, 1, 1.25, 2, 4, 8):
        if low <= math.log2(tick) <= high:
            x = at(math.log2(tick))
            dash = "" if tick == 1 else ' stroke-dasharray="3 3"'
            out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - 22}" stroke="#bbbbbb"{dash}/><text x="{x:.1f}" y="{height - 8}" text-anchor="middle" font-size="10">{tick:g}</text>')
    for number, (case, of) in enumerate(rows.items()):
        y = TOP + ROW * number + 6
        out.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(case)}</text>')
        for name, value in of.items():
            fill = colour[name] if name.startswith("yun") else "none"
            out.append(f'<circle cx="{at(value):.1f}" cy="{y}" r="4.5" fill="{fill}" stroke="{colour[name]}" stroke-width="1.6"/>')
    out.append("</svg>\n")
    with open(file, "w") as picture:
        picture.write("\n".join(out))
