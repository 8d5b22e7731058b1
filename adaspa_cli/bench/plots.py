"""The plots of a bench as SVG: where the time goes, quality against speed, and the curves that a bench asks for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from matplotlib.axes import Axes

from adaspa_cli.bench.render import TITLES
from adaspa_cli.bench.schema import Bench, BenchRow, Missing, Part
from adaspa_cli.config import MethodConfig
from adaspa_cli.config.flat import keys_of
from adaspa_cli.config.methods import DENSE
from adaspa_cli.report.drawing import COLOURS, Drawing, svg

_METHOD_KEYS = {*keys_of(MethodConfig)}
_LABELS = {
    "latency": "latency, s",
    "denoising": "denoising, s",
    "attention": "attention, s",
    "speed_up": "speed-up over full",
    "density": "density",
    "search_steps": "first search step (dense steps before it)",
    **TITLES,
}


def plots(bench: Bench) -> list[Drawing]:
    """All plots for which there are figures."""
    drawn = [_times(bench)]
    asked = [(plot.x, plot.y) for plot in bench.plots]
    drawn += [_curve(bench, x, y) for x, y in dict.fromkeys([*asked, ("speed_up", "psnr")])]
    return [drawing for drawing in drawn if drawing is not None]


def figure_of(row: BenchRow, key: str) -> float | None:
    """A figure of a row, or a setting: a number, or the first entry of a list; None if there is none."""
    figures: dict[str, float | None] = {
        **{metric: getattr(figure, "mean", None) for metric, figure in row.quality.items()},
        **{part: getattr(figure, "median", None) for part, figure in row.seconds.items()},
        "speed_up": getattr(row.speed_up["latency"], "value", None),
        "density": getattr(row.density, "median", None),
    }
    if key in figures:
        return figures[key]
    if row.settings["algorithm"] in DENSE and key in _METHOD_KEYS:
        return None  # it has a value, but dense attention has no use for it
    value = row.settings.get(key)
    value = value[0] if isinstance(value, list) and value else value
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _times(bench: Bench) -> Drawing | None:
    """Bars of the median seconds, part by part."""
    rows = [row for row in bench.rows if row.runs]
    if not rows or not bench.times:
        return None

    def part(row: BenchRow, name: Part) -> float:
        return getattr(row.seconds[name], "median", 0.0)

    def untimed(row: BenchRow) -> bool:
        return isinstance(row.seconds["attention"], Missing)

    parts: dict[str, Callable[[BenchRow], float]] = {
        "text encoding": lambda row: part(row, "text_encoding"),
        "attention": lambda row: part(row, "attention"),
        "rest of denoising": lambda row: 0.0 if untimed(row) else part(row, "denoising") - part(row, "attention"),
        "decoding": lambda row: part(row, "decoding"),
    }
    if any(untimed(row) for row in rows):
        parts["denoising, attention not timed"] = lambda row: part(row, "denoising") if untimed(row) else 0.0

    def draw(axes: Axes) -> None:
        left = [0.0] * len(rows)
        names = [row.name for row in rows]
        for colour, (label, value) in zip(COLOURS, parts.items(), strict=False):
            widths = [value(row) for row in rows]
            axes.barh(names, widths, left=left, color=colour, label=label, height=0.6)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("seconds, medians")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=4, frameon=False)

    return Drawing("Where the time goes", svg(draw, height=1.4 + 0.36 * len(rows)))


def _curve(bench: Bench, x: str, y: str) -> Drawing | None:
    """Points of one figure over another, joined where rows differ only by ``each``."""
    order = list(dict.fromkeys(row.series for row in bench.rows))  # a series looks alike in all plots
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in bench.rows:
        place = (figure_of(row, x), figure_of(row, y))
        if place[0] is not None and place[1] is not None:
            series[row.series].append((place[0], place[1]))
    if not series:
        return None

    def draw(axes: Axes) -> None:
        for name, points in series.items():
            number = order.index(name)
            across, up = zip(*sorted(points), strict=True)
            marker = "osD^vP*Xhd"[number // len(COLOURS) % 10]
            axes.plot(across, up, marker=marker, color=COLOURS[number % len(COLOURS)], label=name)
        axes.set_xlabel(_LABELS.get(x, x.replace("_", " ")))
        axes.set_ylabel(_LABELS.get(y, y.replace("_", " ")))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)

    return Drawing(f"{_LABELS.get(y, y)} against {_LABELS.get(x, x)}", svg(draw, height=3.6))
