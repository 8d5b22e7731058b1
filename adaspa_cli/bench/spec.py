"""What a bench compares: rows of settings, prompts and seeds, from a YAML file. Imports nothing heavy.

A row holds any keys of a run's YAML. ``each`` multiplies it: one row for every combination of the values it lists.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaspa_cli.config.fields import MOST_STEPS, at_least, fit, shown
from adaspa_cli.config.flat import keys_of
from adaspa_cli.config.load import check_value, check_values, override, read_mapping
from adaspa_cli.config.presets import preset_names, presets_root
from adaspa_cli.config.schema import GenerateConfig, PromptConfig
from adaspa_cli.errors import AdaspaError, ConfigError, nearest
from adaspa_cli.jobs.prompts import collect_prompts

# What the bench itself decides for every run.
RESERVED = ("prompt", "prompts", "seed", "out", "resume", "lossless")
_OWN_FLAGS = (*RESERVED, "model", "device", "random_weights", "layers", "compile")  # of the command, for all rows
FIGURES = ("latency", "denoising", "attention", "speed_up", "density", "psnr", "ssim", "st_lpips", "lpips", "vbench")
# With its value, if that is what comes next and not a word of the sentence.
_FLAG = re.compile(r"--([a-z][a-z-]*[a-z])(?: (?!(?:or|and|of|above|when|that)\b)([\w.]+(?:[:,-][\w.]+)*))?")
_MOST = 12  # rows that a message names
_LONGEST = 200  # characters of a folder's name; most file systems take 255


@dataclass(frozen=True)
class Row:
    """One line of the tables.

    Attributes:
        name: what the tables call it.
        settings: keys of a run's YAML and their values.
        series: the line of a plot that the row is a point of: its name before ``each``.
    """

    name: str
    settings: Mapping[str, Any]
    series: str

    @property
    def folder(self) -> str:
        """Name of the folder of its runs; of a long name its beginning and a digest."""
        name = re.sub(r"[^a-z0-9.=]+", "-", self.name.lower()).strip("-.") or "row"
        if len(name) <= _LONGEST:
            return name
        return f"{name[: _LONGEST - 9].strip('-.')}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


@contextmanager
def naming(row: Row) -> Iterator[None]:
    """Say of an error within which row it is of."""
    try:
        yield
    except AdaspaError as error:
        raise type(error)(f"row '{row.name}': {error.message}", hint=by_keys(error.hint)) from error


def by_keys(hint: str | None) -> str | None:
    """A hint that names flags of ``generate``, by keys and values as a row has them; flags of ``bench`` stay."""

    def key(flag: re.Match[str]) -> str:
        name, value = flag[1].replace("-", "_"), flag[2]
        if name not in keys_of(GenerateConfig) or name in _OWN_FLAGS:
            return flag[0]
        return f"{name}: {value}" if value else name

    return hint and _FLAG.sub(key, hint)


@dataclass(frozen=True)
class Plot:
    """A figure ``y`` over a figure or a setting ``x``; of a setting that is a list, its first entry."""

    x: str
    y: str


@dataclass(frozen=True)
class BenchSpec:
    """A bench.

    Attributes:
        title: heading of the tables.
        source: the preset or file that it came from.
        rows: what is compared.
        prompts, seeds: every row makes a video of each prompt with each seed.
        about: what the tables say about themselves.
        run: settings of all rows; those of a row win.
        paper: tables of the paper whose figures are shown beside ours where the settings are the same.
        plots: curves to draw, beside the plots that every bench has.
        warmup_steps: denoising steps that a row runs before its first run of a process, unmeasured, and more if so few
            do not meet every phase of the row; 0 for none.
    """

    title: str
    source: str
    rows: tuple[Row, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    about: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)
    paper: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    warmup_steps: int = 2

    def chosen(self, text: str) -> BenchSpec:
        """Only the rows of these names, or of these names before ``each``; commas between them, and maybe in them.

        Raises:
            ConfigError: there is no such row.
        """
        known = list(dict.fromkeys([*(row.series for row in self.rows), *(row.name for row in self.rows)]))
        names = _names(text.split(","), known)
        for name in names:
            if name not in known:
                raise ConfigError(f"unknown row '{name}'{nearest(name, known)}", hint=f"rows: {_some(known)}")
        rows = tuple(row for row in self.rows if row.name in names or row.series in names)
        return dataclasses.replace(self, rows=rows)

    def changed(self, settings: Mapping[str, Any]) -> BenchSpec:
        """With settings of all rows changed; choose the rows first, since no row may set one of them itself.

        Raises:
            ConfigError: an unknown key, a wrong value, or a key that rows set themselves.
        """
        checked = _settings(settings, "--set")
        for key in checked:
            own = [row.name for row in self.rows if key in row.settings]
            if own:
                others = [row.name for row in self.rows if key not in row.settings]
                raise ConfigError(
                    f"--set {key}: {'a row sets' if len(own) == 1 else 'rows set'} it already: {_some(own)}",
                    hint=f"run only the others: --rows {shlex.quote(','.join(others))}"
                    if 0 < len(others) <= _MOST
                    else f"{'name only others in --rows, or ' if others else ''}write a bench file of your own",
                )
        return dataclasses.replace(self, run=override(self.run, checked))


def load_bench(preset: str | None, file: Path | None) -> BenchSpec:
    """Read a bench from a preset or a file.

    Raises:
        ConfigError: none or both are given, the file is not a bench, or it holds an unknown key or a wrong value.
    """
    known = preset_names("bench")
    if (preset is None) == (file is None):
        raise ConfigError("name one bench: --preset NAME or --config FILE", hint=f"presets: {', '.join(known)}")
    if preset is not None and preset not in known:
        raise ConfigError(f"unknown bench '{preset}'{nearest(preset, known)}", hint=f"known: {', '.join(known)}")
    path = file if file is not None else presets_root() / "bench" / f"{preset}.yaml"
    spec = parse_bench(read_mapping(path), path)
    return spec if preset is None else dataclasses.replace(spec, source=f"preset {preset}")


def parse_bench(content: Mapping[str, Any], path: Path) -> BenchSpec:
    """Check what a bench file holds; ``path`` is its name, and where prompt files are looked for.

    Raises:
        ConfigError: as :func:`load_bench`.
    """
    origin = str(path)
    known = [f.name for f in dataclasses.fields(BenchSpec) if f.name != "source"]
    for key in content:
        if key not in known:
            raise ConfigError(f"unknown key '{key}' in {origin}{nearest(key, known)}", hint=f"keys: {', '.join(known)}")
    rows = tuple(_rows(content.get("rows"), origin))
    for what, values in (("name", [row.name for row in rows]), ("folder", [row.folder for row in rows])):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise ConfigError(f"two rows in {origin} have the {what} '{twice.pop()}'", hint="give each a `name:`")
    warmup = content.get("warmup_steps", BenchSpec.warmup_steps)
    if not isinstance(warmup, int) or isinstance(warmup, bool):
        raise ConfigError(f"warmup_steps in {origin} must be a whole number, got {shown(warmup)}")
    at_least(0, MOST_STEPS)(f"warmup_steps in {origin}", warmup)
    paper, plots = content.get("paper", []), content.get("plots", [])
    if not isinstance(plots, list):
        raise ConfigError(
            f"plots in {origin} must be a list of plots, got {shown(plots)}", hint="plots: [{x: sparsity, y: psnr}]"
        )
    return BenchSpec(
        title=str(content.get("title", path.stem)),
        source=origin,
        rows=rows,
        prompts=_prompts(content.get("prompts"), path),
        seeds=check_value("seed", content.get("seeds", [0]), origin),
        about=str(content.get("about", "")),
        run=_settings(content.get("run", {}), f"'run' of {origin}"),
        paper=tuple(map(str, paper if isinstance(paper, list) else [paper])),
        plots=tuple(_plot(plot, origin) for plot in plots),
        warmup_steps=warmup,
    )


def _settings(values: Any, origin: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{origin} must hold 'key: value' lines, got {values!r}")
    for key in RESERVED:
        if key in values:
            raise ConfigError(f"{key} in {origin}: the bench sets it itself", hint="see the keys prompts and seeds")
    return check_values({str(key): value for key, value in values.items()}, origin)


def _rows(content: Any, origin: str) -> list[Row]:
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{origin} must hold one or more rows", hint="rows: [{method: full}, {method: adaspa}]")
    rows = []
    for number, entry in enumerate(content, start=1):
        where = f"row {number} of {origin}"
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{where} must hold 'key: value' lines, got {entry!r}")
        each = entry.get("each", {})
        if not isinstance(each, Mapping) or not all(isinstance(values, list) and values for values in each.values()):
            raise ConfigError(f"'each' of {where} must hold lists of values", hint="each: {sparsity: [0.7, 0.8]}")
        settings = _settings({k: v for k, v in entry.items() if k not in ("name", "each")}, where)
        name = entry.get("name")
        series = _describe(settings) if name in (None, "") else str(name)
        for values in itertools.product(*each.values()):
            point = _settings(dict(zip(each, values, strict=True)), f"'each' of {where}")
            name = " ".join([series, *(f"{key}={_short(value)}" for key, value in point.items())])
            rows.append(Row(name, override(settings, point), series))
    return rows


def _describe(settings: Mapping[str, Any]) -> str:
    others = [f"{key}={_short(value)}" for key, value in settings.items() if key != "method"]
    return " ".join([str(settings.get("method", "adaspa")), *others])


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _prompts(content: Any, path: Path) -> tuple[str, ...]:
    if isinstance(content, str):
        return tuple(collect_prompts(PromptConfig(prompts=str(path.parent / Path(content).expanduser()))))
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{path} must hold prompts", hint="a list of texts, or the name of a file with one per line")
    return tuple(collect_prompts(PromptConfig(prompt=check_value("prompt", content, str(path)))))


def _plot(content: Any, origin: str) -> Plot:
    if not isinstance(content, Mapping) or set(content) != {"x", "y"} or content["y"] not in FIGURES:
        raise ConfigError(f"a plot in {origin} must be x and y, got {content!r}", hint=f"y: {', '.join(FIGURES)}")
    x, settings = str(content["x"]), keys_of(GenerateConfig)
    numbers = [*FIGURES, *(key for key, setting in settings.items() if fit(1, setting.hint)[0])]
    if x not in numbers:
        raise ConfigError(
            f"x of a plot in {origin} must be a figure or a numeric setting, got {shown(x)}{nearest(x, numbers)}",
            hint=f"{', '.join(FIGURES)}, or a setting such as sparsity",
        )
    return Plot(x, str(content["y"]))


def _names(pieces: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that a text between commas is of: the longest that are known, since a name may have commas."""
    if not pieces:
        return []
    cuts = range(len(pieces), 0, -1)
    count = next((count for count in cuts if ",".join(pieces[:count]).strip() in known), 1)
    return [",".join(pieces[:count]).strip(), *_names(pieces[count:], known)]


def _some(names: Sequence[str]) -> str:
    """Rows in a message: a large bench has over a hundred."""
    left = len(names) - _MOST
    return ", ".join(names[:_MOST]) + (f" and {left} more; adaspa bench --plan lists them" if left > 0 else "")
