"""The plots of a comparison: PSNR against what a method costs, with the Pareto front.

Only the functions that draw import matplotlib.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hranet_arch.record import Cost, Record
from hranet_arch.scores import (
    Group,
    find_cost,
    is_partial,
    list_groups,
    name_group,
    name_set,
    name_size,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

INK, RULE, PAPER = "#26292e", "#dcdfe4", "#ffffff"  # the page replaces them by its own, light or dark
COLORS = ("#3b7dd8", "#d9822b", "#2e9e6b", "#c8506a", "#8a6fd1", "#8c8c3a", "#3aa3b5", "#a5744a")  # seen on both
MAX_LINES = 3  # classical methods drawn as a level line


# --- PSNR against cost ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A method in a plot; ``low`` and ``high`` are the quartiles of a latency, else ``cost`` itself."""

    method: str
    cost: float
    psnr: float
    low: float
    high: float


@dataclass(frozen=True)
class Quantity:
    """What a plot has on its cost axis."""

    key: Literal["macs", "latency", "parameters"]
    title: str
    unit: str

    def sizes(self, cost: Cost) -> list[tuple[int, int, int] | None]:
        if self.key == "latency":
            return [latency.size for latency in cost.latency]
        return [cost.macs_size] if self.key == "macs" and cost.macs is not None else [None]

    def read(self, cost: Cost, size: tuple[int, int, int] | None) -> tuple[float, float, float] | None:
        """Value, lower and upper quartile at a size; None where it was not measured."""
        if self.key == "latency":
            found = next((latency for latency in cost.latency if latency.size == size), None)
            return found and tuple(1e3 * t for t in (found.median, found.lower_quartile, found.upper_quartile))
        if self.key == "macs":
            return (cost.macs / 1e9,) * 3 if cost.macs and cost.macs_size == size else None
        return (cost.parameters / 1e6,) * 3 if cost.parameters else None


QUANTITIES = (
    Quantity("macs", "PSNR against MACs", "MACs, G"),
    Quantity("latency", "PSNR against latency", "latency, ms"),
    Quantity("parameters", "PSNR against parameters", "parameters, M"),
)


@dataclass(frozen=True)
class Panel:
    """One plot: a test set at a level. ``lines`` are classical methods without this cost, by name."""

    group: Group
    axis: str
    points: list[Point]
    lines: dict[str, float]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The ``(cost, quality)`` points that no other beats: none is as cheap and better, or cheaper and as good."""
    front = []
    for cost, quality in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def list_panels(record: Record, quantity: Quantity) -> list[Panel]:
    """The panels of a plot, those with at least one point; means over part of a set are left out, so is the input."""
    panels = []
    for group in list_groups(record):
        results = {name: result for name, method in record.methods.items() if method.kind != "input"
                   and (result := record.find(name, *group)) and not is_partial(record, result)}  # fmt: skip
        costs = {name: cost for name in results if (cost := find_cost(record, name, group[1]))}
        scales = {name: _find_scale(record, name, group[1]) for name in costs}
        size = _choose_size(quantity, costs, scales)
        values = {}
        for name, cost in costs.items():
            own = next((one for one in quantity.sizes(cost) if _has_result_of(one, size, scales[name])), None)
            if value := quantity.read(cost, own):
                values[name] = value
        points = [Point(name, value, results[name].psnr, low, high) for name, (value, low, high) in values.items()]
        others = [name for name in results if name not in values and record.methods[name].kind == "classical"]
        lines = {name: results[name].psnr for name in others[:MAX_LINES]}
        if points:
            panels.append(Panel(group, quantity.unit + (f" at {name_size(size)}" if size else ""), points, lines))
    return panels


def _find_scale(record: Record, name: str, level: float) -> int:
    """How many times as large a method's result is as what it is given."""
    enlarges = record.protocol.task == "sr" and not record.methods[name].enlarge_first
    return int(level) if enlarges else 1


def _choose_size(quantity: Quantity, costs: dict[str, Cost], scales: dict[str, int]) -> tuple[int, int] | None:
    """Height and width of the largest result that costs are stated for."""
    sizes = [(size[1] * scales[name], size[2] * scales[name]) for name, cost in costs.items()
             for size in quantity.sizes(cost) if size]  # fmt: skip
    return max(sizes, key=math.prod, default=None)


def _has_result_of(given: tuple[int, int, int] | None, size: tuple[int, int] | None, scale: int) -> bool:
    """Whether this is what a network is given for a result of this size; sides that it cannot make whole are cut."""
    return given is not None and size is not None and given[1:] == (size[0] // scale, size[1] // scale)


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """matplotlib as it comes, whatever its user's ``matplotlibrc`` says: a report's bytes do not depend on that."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a line for each letter and each picture
        yield


def _warn_of_boxes(names: Sequence[str]) -> None:
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    missing = [name for name in names if not all(font.get_char_index(ord(letter)) for letter in name)]
    if missing:
        logger.warning(
            "%s: matplotlib's font lacks letters of it. The files in plots and crops have boxes in their place; the "
            "page and the tables are whole.",
            ", ".join(missing),
        )


@default_style()
def write_plots(record: Record, folder: Path) -> list[dict[str, str]]:
    """Writes a PNG and an SVG for each quantity.

    Returns:
        Title and SVG for the page, with text as text and colours that follow the page.
    """
    import matplotlib

    _warn_of_boxes(record.methods)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("psnr_*.*"):  # an earlier run's, of other methods
        path.unlink()
    figures = []
    for quantity in QUANTITIES:
        panels = list_panels(record, quantity)
        if not panels:
            continue
        figure = _draw_panels(record, panels)
        path = folder / f"psnr_{quantity.key}"
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with matplotlib.rc_context({"svg.hashsalt": path.name}):
            figure.savefig(path.with_suffix(".svg"), metadata=no_metadata)
            text = io.StringIO()
            with matplotlib.rc_context({"svg.fonttype": "none"}):
                figure.savefig(text, format="svg", metadata=no_metadata)
        figures.append({"title": quantity.title, "svg": _adapt_svg(text.getvalue(), quantity.key)})
    return figures


def _adapt_svg(text: str, key: str) -> str:
    """Makes an SVG part of the page: its colours and font the page's, its ids unique there."""
    text = text[text.index("<svg ") :]
    text = text.replace(PAPER, "none").replace(INK, "currentColor").replace(RULE, "var(--rule)")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", text)


def _draw_panels(record: Record, panels: list[Panel]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(name_set(panel.group[0]) for panel in panels))
    levels = [level for level in record.protocol.levels if level in {panel.group[1] for panel in panels}]
    figure = Figure(figsize=(0.4 + 3.4 * len(levels), 0.3 + 2.9 * len(sets)), facecolor=PAPER)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(sets), len(levels))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(record.methods)}
    drawn = []
    for panel in panels:
        axes = figure.add_subplot(grid[sets.index(name_set(panel.group[0])), levels.index(panel.group[1])])
        drawn.append((axes, _draw_panel(axes, panel, name_group(record, panel.group), colors)))
    figure.draw_without_rendering()  # the layout is settled: labels can be set where there is room
    figure.set_layout_engine("none")
    for axes, texts in drawn:
        _place_labels(axes, texts)
    return figure


def _draw_panel(axes: Axes, panel: Panel, title: str, colors: dict[str, str]) -> list:
    """Draws all but the places of the labels. Returns the labels."""
    left, right = _set_axes(axes, panel, title)
    front = pareto_front([(point.cost, point.psnr) for point in panel.points])
    front.append((right, front[-1][1]))  # to the edge: what is dearer has to be better than this
    axes.step(*zip(*front), where="post", color=INK, alpha=0.35, linewidth=1, zorder=1.5)
    for point in panel.points:
        color = colors[point.method]
        if point.high > point.low:
            axes.plot([point.low, point.high], [point.psnr] * 2, color=color, linewidth=5, alpha=0.3)
        axes.plot(point.cost, point.psnr, "o", color=color, markersize=5.5)
    for method, psnr in panel.lines.items():
        axes.axhline(psnr, color=colors[method], linewidth=1, linestyle=(0, (4, 3)))
    style = {"fontsize": 8, "color": INK, "textcoords": "offset points", "annotation_clip": False}
    labels = [axes.annotate(p.method, (p.cost, p.psnr), (0, 0), parse_math=False, **style) for p in panel.points]
    lines = [axes.annotate(m, (left, y), (0, 0), parse_math=False, **style) for m, y in panel.lines.items()]
    return [*lines, *labels]


def _set_axes(axes: Axes, panel: Panel, title: str) -> tuple[float, float]:
    """Scales, ticks and titles. Returns the limits of the cost axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, ScalarFormatter

    low, high = min(point.low for point in panel.points), max(point.high for point in panel.points)
    margin = max((high / low) ** 0.14, 1.4)  # room for labels
    heights = [point.psnr for point in panel.points] + list(panel.lines.values())
    space = max(0.16 * (max(heights) - min(heights)), 0.05)
    axes.set(xscale="log", xlim=(low / margin, high * margin), ylim=(min(heights) - space, max(heights) + space))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=RULE)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.set_title(title, fontsize=9.5, color=INK, loc="left", parse_math=False)
    axes.set_xlabel(panel.axis, fontsize=8, color=INK)
    axes.set_ylabel("PSNR, dB", fontsize=8, color=INK)
    return low / margin, high * margin


# Offsets of a label from its point in points, with its alignment: beside, above, below, then farther off.
_PLACES = [(x * step, y * step, ("right", "center", "left")[x + 1], ("top", "center", "bottom")[y + 1])
           for step in (3, 6, 12, 20) for x, y in ((-1, 1), (0, 1), (1, 1), (1, -1), (1, 0), (-1, 0), (0, -1), (-1, -1))
           ]  # fmt: skip


def _place_labels(axes: Axes, labels: list) -> None:
    """Gives each label the first place inside the axes where it covers no point and no label set before."""
    from matplotlib.transforms import Bbox

    frame = axes.get_window_extent()
    centres = axes.transData.transform([label.xy for label in labels])
    taken = [Bbox([(x - 5, y - 5), (x + 5, y + 5)]) for x, y in centres] + _list_strokes(axes)
    for label in labels:
        boxes = []
        for x, y, horizontal, vertical in _PLACES:
            label.set(position=(x, y), horizontalalignment=horizontal, verticalalignment=vertical)
            box = label.get_window_extent()
            outside = max(frame.x0 - box.x0, box.x1 - frame.x1, frame.y0 - box.y0, box.y1 - frame.y1, 0)
            shared = [Bbox.intersection(box.padded(2), other) for other in taken]
            overlap = sum(np.prod(each.size) for each in shared if each)
            # nearer to another point than to its own, it would seem to be that one's
            away = np.linalg.norm(centres - np.clip(centres, box.min, box.max), axis=1)
            is_mistakable = away[labels.index(label)] > away.min() + 1e-6
            boxes.append((overlap + 50 * outside + 100 * is_mistakable, box))
            if boxes[-1][0] == 0:
                break
        best = min(range(len(boxes)), key=lambda i: boxes[i][0])
        x, y, horizontal, vertical = _PLACES[best]
        label.set(position=(x, y), horizontalalignment=horizontal, verticalalignment=vertical)
        taken.append(boxes[best][1])


def _list_strokes(axes: Axes) -> list:
    """Thin boxes around the lines of a panel: the front's steps and the level lines, which a label should not cross."""
    from matplotlib.transforms import Bbox

    boxes = []
    for line in axes.lines:
        path = line.get_transform().transform_path(line.get_path()).vertices
        if line.get_drawstyle() == "steps-post":
            path = [corner for a, b in zip(path, path[1:]) for corner in (a, (b[0], a[1]), b)]
        boxes += [Bbox([np.minimum(a, b) - 1, np.maximum(a, b) + 1]) for a, b in zip(path, path[1:])]
    return boxes
