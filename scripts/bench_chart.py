#!/usr/bin/env python3
"""Draws what `scripts/bench` measured: for each work our CPU as a multiple of the best peer's, and the target.

    scripts/bench_chart.py OUT.svg REPORT.json [REPORT.json ...]    (of several reports the last that has a row counts)

`scripts/bench` calls it for its own report. Trials of fewer than three rounds are left out where several are given."""

import json
import math
import sys
from html import escape
from pathlib import Path

LEFT, WIDTH, ROW, TOP, LEAST, MOST = 240, 460, 24, 66, 0.1, 3.0
BETTER, WORSE, INK, FAINT = "#2b7a78", "#c8682a", "#333", "#bbb"


def rows(reports):
    """Work and mode to its figures: ours, best peer, its name, target; `None` where either lacks."""
    found = {}
    for report in reports:
        if len(reports) > 1 and report["rounds"] < 3:
            continue
        for entry in report["results"]:
            cpu = {who: row["cpu"]["median"] for who, row in entry["servers"].items() if not who.endswith("-plain")}
            ours = cpu.pop("evergate", None)
            peers = {who: value for who, value in cpu.items() if value}
            if not (ours and peers):
                continue
            best = min(peers, key=peers.get)
            target = entry["target"] or {}
            # A target may speak of another peer than the best.
            most = target["at_most"] * peers[target["of"]] / peers[best] if target.get("of") in peers else None
            found[entry["mode"], entry["work"]] = (ours / peers[best], best, most)
    return found


def x(ratio):
    share = math.log(min(max(ratio, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)
    return LEFT + WIDTH * share


def draw(reports):
    found = rows(reports)
    height = TOP + ROW * len(found) + 20
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" font-family="sans-serif" font-size="13" '
           f'fill="{INK}">', '<rect width="100%" height="100%" fill="#fff"/>',
           '<text x="16" y="22" font-size="15" font-weight="bold">CPU of evergate as a multiple of the best peer\'s</text>',
           f'<text x="16" y="40">less is better; | is the target; measured {escape(" and ".join(sorted({r["at"][:10] for r in reports})))}'
           '</text>']
    for tick in (0.1, 0.2, 0.5, 1, 2, 3):
        out.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 4}" y2="{height - 16}" '
                   f'stroke="{INK if tick == 1 else FAINT}"/>'
                   f'<text x="{x(tick):.1f}" y="{TOP - 8}" text-anchor="middle" font-size="11">{tick:g}</text>')
    for place, ((mode, work), (ratio, best, most)) in enumerate(found.items()):
        y = TOP + ROW * place
        a, b = sorted((x(1), x(ratio)))
        colour = BETTER if ratio <= 1 else WORSE
        name = work if mode == "pinned" else f"{work} ({mode})"
        out.append(f'<text x="{LEFT - 10}" y="{y + 16}" text-anchor="end">{escape(name)}</text>'
                   f'<rect x="{a:.1f}" y="{y + 4}" width="{max(b - a, 1):.1f}" height="{ROW - 8}" fill="{colour}"/>'
                   f'<text x="{LEFT + WIDTH + 12}" y="{y + 16}">{ratio:.2f} × {escape(best)}</text>')
        if most:
            out.append(f'<line x1="{x(most):.1f}" x2="{x(most):.1f}" y1="{y + 2}" y2="{y + ROW - 2}" stroke="{INK}" '
                       'stroke-width="2"/>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    reports = sorted((json.loads(Path(name).read_text()) for name in sys.argv[2:]), key=lambda r: r["at"])
    Path(sys.argv[1]).write_text(draw(reports))


if __name__ == "__main__":
    main()
