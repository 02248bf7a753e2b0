"""Figures of what was measured, as SVG: ``python -m benchmarks.figures RESULTS.json FOLDER`` draws them anew.

The text stays text, and the same numbers give the same bytes. The colours are those of GitHub's pages, light or dark as
the reader's system has it, on a ground of their own.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from .table import Row, Section

__all__ = ["FIGURES", "draw"]

INK, FAINT, GROUND, OURS, THEIRS, BAD = "#1f2328", "#d1d9e0", "#ffffff", "#0969da", "#8c959f", "#cf222e"
DARK = {INK: "#f0f6fc", FAINT: "#3d444d", GROUND: "#0d1117", OURS: "#4493f8", THEIRS: "#818b98", BAD: "#f85149"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "scoped_rng",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), GROUND),
}
LEFT = 0.015  # where titles and captions begin


def section(results: dict[str, Any], name: str, title: str) -> Section | None:
    """Return the part of the results whose title begins so, if it was measured."""
    for found in results["benchmarks"].get(name, {}).get("sections", ()):
        if found["title"].startswith(title):
            return Section(found["title"], found["unit"], [Row(**row) for row in found["rows"]])
    return None


def finish(figure: Any, title: str, rows: list[Row]) -> None:
    """Put the finding over the figure, and below it which goals were missed."""
    measured = [row for row in rows if row.goal is not None and row.value is not None]
    late = [
        f"MISSED: {row.name}: {row.value if row.ratio is None else row.ratio:.3g}, the goal is {row.goal:.3g}"
        for row in measured
        if not row.is_met
    ]
    lines = late or ["All goals met."] if measured else []
    line = 0.16 / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, line * (len(lines) + 0.5), 1, 1 - line * (len(lines) + 2.5)), w_pad=0.08)
    figure.text(LEFT, line / 2, "\n".join(lines), va="bottom", fontsize=8, color=BAD if late else INK)
    figure.text(LEFT, 1 - line / 2, title, va="top", fontsize=11, fontweight="bold")


def scope(results: dict[str, Any]) -> Any:
    """Draw an empty scope beside its peers."""
    found = section(results, "scope", "On the main program")
    if found is None:
        return None
    there = sorted((row for row in found.rows if row.value is not None), key=lambda row: row.value or 0)
    ours = found.rows[0]
    naive = next(row for row in found.rows if row.name.startswith("naive"))
    figure, axes = _subplots(1, 1, 7.6, 0.32 * len(there) + 1.2)
    colours = [OURS if row is ours else THEIRS for row in there]
    axes.barh([row.name for row in there], [row.value for row in there], color=colours, height=0.65)
    for place, row in enumerate(there):
        text = f"{row.value:.0f}"
        if row.ratio is not None and row.goal is not None:
            verdict = "" if row.is_met else ", MISSED"
            text += f"; a scope takes {row.ratio:.2f} of it, the goal is {row.goal:.2f}{verdict}"
        colour = INK if row.goal is None or row.is_met else BAD
        place_of = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (row.value, place), fontsize=8, color=colour, **place_of)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlim(right=1.8 * max(row.value or 0 for row in there))
    axes.set_xlabel("µs round an empty body")
    finish(figure, f"An empty scope takes {ours.value:.0f} µs, {naive.ratio:.2f} of the same by hand", found.rows)
    return figure


def loader(results: dict[str, Any]) -> Any:
    """Draw what seeding adds to a sample, by the time that the sample takes."""
    from .data import BY_TIME, GOAL

    found, goals = section(results, "data", BY_TIME), section(results, "data", "Between two samples")
    if found is None or goals is None:
        return None
    points = [(row.x or 0, 100 * (row.ratio or 0)) for row in found.rows]
    at_one = next(row for row in found.rows if row.x == 1)
    figure, axes = _subplots(1, 1, 6.4, 3.6)
    axes.plot(*zip(*points, strict=True), color=OURS, marker="o", markersize=4)
    axes.plot([1], [100 * GOAL], color=BAD, marker="_", markersize=14, linestyle="none")
    offset = {"textcoords": "offset points", "fontsize": 8}
    axes.annotate(f"goal at 1 ms: {100 * GOAL:g} %", (1, 100 * GOAL), (10, 4), **offset)
    for x, y in points:
        axes.annotate(f"{y:.2g} %", (x, y), (0, -12), ha="right", **offset)
    axes.set_xscale("log")
    axes.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
    if min(y for _, y in points) > 0:
        axes.set_yscale("log")
        ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if tick < 2 * max(y for _, y in points)]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_ylim(bottom=0.6 * min(y for _, y in points))
    axes.minorticks_off()
    axes.set_xlabel("ms that a sample takes")
    axes.set_ylabel("% that seeding adds")
    share = 100 * (at_one.ratio or 0)
    finish(figure, f"Seeding a sample takes {at_one.value:.0f} µs: {share:.1f} % of a sample of 1 ms", goals.rows)
    return figure


def growth(results: dict[str, Any]) -> Any:
    """Draw how the cost of a scope grows, a panel for each thing that it grows with."""
    from .growth import BUFFERS, DEPTH, DEVICES, NESTING, STREAMS

    each = {DEPTH: "a frame", DEVICES: "a device", STREAMS: "a stream", NESTING: "an open scope", BUFFERS: "a MB"}
    panels = [(title, found) for title in each if (found := section(results, "growth", title))]
    if not panels:
        return None
    figure, grid = _subplots(2, 3, 8.6, 4.8)
    *places, rest = grid.flat
    rest.axis("off")
    labels, is_flat = {}, True
    for axes, (title, found) in zip(places, panels, strict=False):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in found.rows:
            lines.setdefault(row.series, []).append((row.x or 0, row.value or 0))
        ours = next(iter(lines))
        for series, marker in zip(lines, "osD", strict=False):
            colour = OURS if series == ours else THEIRS
            line = axes.plot(*zip(*lines[series], strict=True), color=colour, marker=marker, markersize=4)[0]
            labels[series] = line
        (start, first), (end, last) = lines[ours][0], lines[ours][-1]
        if title in (DEPTH, NESTING):
            is_flat = is_flat and last < 1.2 * first
        axes.set_title(f"{(last - first) / (end - start):.2g} {found.unit} {each[title]}")
        axes.set_ylim(0, 1.15 * max(y for line in lines.values() for _, y in line))
        axes.set_xlabel(title)
        axes.set_ylabel(found.unit)
    rest.legend(labels.values(), labels, loc="center left", fontsize=8)
    finding = ", not with where it stands" if is_flat else " and with where it stands"
    finish(figure, f"The cost of a scope grows with what it holds{finding}", [])
    return figure


FIGURES = {"scope": scope, "loader": loader, "growth": growth}


def draw(results: dict[str, Any], folder: Path) -> None:
    """Draw each figure that there are numbers for into a file of the folder."""
    try:
        matplotlib = import_module("matplotlib")
    except ModuleNotFoundError:
        print("No figures are drawn: matplotlib is not installed; pip install 'scoped-rng[benchmarks]'")
        return
    matplotlib.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, make in FIGURES.items():
            figure = make(results)
            if figure is not None:
                file = folder / f"{name}.svg"
                figure.savefig(file, metadata={"Date": None, "Creator": None})
                import_module("matplotlib.pyplot").close(figure)
                file.write_text(_for_both_modes(file.read_text(encoding="utf-8")), encoding="utf-8")
                print(f"{file} is drawn")


def _subplots(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    figure, axes = import_module("matplotlib.pyplot").subplots(
        rows, columns, figsize=(width, height), layout="constrained"
    )
    return figure, axes


def _for_both_modes(svg: str) -> str:
    """Add the colours for the dark mode."""
    rules = [
        f'[style*="{what}: {light}"] {{ {what}: {dark} !important }}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    ]
    style = "<style>@media (prefers-color-scheme: dark) {\n" + "\n".join(rules) + "\n}</style>\n"
    head, end, rest = svg.partition(" <defs>\n")
    lines = (line.rstrip() for line in (head + style + end + rest).splitlines())
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
