"""The reference of the configuration, from its dataclasses, the table of flags and the presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import yaml

from adaspa_cli.commands.options import GENERATE, Flag
from adaspa_cli.config import GenerateConfig, MethodConfig, ModelConfig, OutputConfig, SamplingConfig
from adaspa_cli.config.caches import Cache
from adaspa_cli.config.fields import is_plain, options_of, wanted
from adaspa_cli.config.flat import Key, keys_of
from adaspa_cli.config.mask_file import MaskFileConfig
from adaspa_cli.config.merging import Merging
from adaspa_cli.config.methods import Algorithm
from adaspa_cli.config.methods.adaspa import AdaSpaConfig
from adaspa_cli.config.methods.base import SearchingConfig, SparseConfig
from adaspa_cli.config.parallel import ParallelConfig
from adaspa_cli.config.presets import preset_names, presets_root
from adaspa_cli.config.schema import PromptConfig
from scripts.references.tables import attributes, code, markdown, sentence, table

HEAD = """# Configuration

Every setting of a run: its key in YAML files, its values, its default, and the flag of `adaspa generate` that sets
it. YAML files are flat: keys are not nested, whatever table they are in. Later sources win: defaults, method preset,
model preset, `--config FILE`, flags. `--print-config` shows every value and where it comes from.

```yaml
# run.yaml, for: adaspa generate --config run.yaml --prompt "a cat walks on the grass"
model: hunyuan
method: adaspa-plus
sparsity: {0: 0.5, 8%: 0.7, 20%: 0.95}
seed: [0, 1]
```

`adaspa generate`, `search-masks`, `visualize` and `bench` take any setting as `--set KEY=VALUE`; in Python,
`adaspa_cli.apply` takes the keys of all tables between *Model* and *Sampling*. A default of `null` is what the text
calls None.

`adaspa generate` and `adaspa_cli.apply` use the method `adaspa-plus` unless a method or a mask file is named.
"""
TITLES: dict[type, str] = {
    PromptConfig: "What the videos show",
    ModelConfig: "Model",
    MaskFileConfig: "Masks from a file",
    MethodConfig: "Method",
    SparseConfig: "Methods with masks",
    SearchingConfig: "Methods that search for masks",
    AdaSpaConfig: "AdaSpa",
    SamplingConfig: "Sampling",
    OutputConfig: "Output",
    ParallelConfig: "Several GPUs",
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings that one dataclass declares.

    Attributes:
        home: the dataclass.
        title: of its table.
        about: what stands above the table.
        keys: their names.
    """

    home: type
    title: str
    about: str
    keys: tuple[str, ...]


def groups() -> Iterator[Group]:
    """All settings of a run, by the dataclass that declares them."""
    for section in get_type_hints(GenerateConfig).values():
        yield from _groups_of(section)


def _groups_of(section: type) -> Iterator[Group]:
    hints = get_type_hints(section)
    own = [name for name, hint in hints.items() if is_plain(hint) or len(options_of(hint)) > 1]
    yield Group(section, TITLES[section], _about(section), tuple(own))
    seen = {*own}
    for hint in hints.values():
        for option in () if is_plain(hint) else options_of(hint):
            for home in reversed(option.__mro__):
                declared = vars(home).get("__annotations__", {})
                names = [name for name in declared if name in keys_of(option) and name not in seen]
                if names:
                    seen |= {*names}
                    yield Group(home, *_titled(home, option), tuple(names))


def _titled(home: type, option: type) -> tuple[str, str]:
    """The title of a table, and what stands above it."""
    if option in get_args(Cache):
        return f"Cache: {option.name}", _about(home)
    if option in get_args(Merging):
        return f"Merged tokens: {option.name}", _about(home)
    if option in get_args(Algorithm) and home is option:
        return TITLES.get(home, f"Method: {option.name}"), _about(home)
    if option in get_args(Algorithm):
        names = [f"`{one.name}`" for one in get_args(Algorithm) if issubclass(one, home)]
        return TITLES[home], f"{_about(home)} These are {', '.join(names)} and their ablations."
    return TITLES[home], _about(home)


def _about(config: type) -> str:
    return markdown((config.__doc__ or "").partition("\n\n")[0])


def page() -> str:
    """The whole page."""
    flags = {flag.key: ", ".join(map(code, flag_names(flag))) for flag in GENERATE}
    parts = [HEAD.rstrip()]
    for group in groups():
        said, known = attributes(group.home), keys_of(GenerateConfig)
        rows = [
            (
                code(key),
                _values(key, known[key]),
                code(_value(known[key].default)),
                flags.get(key, ""),
                sentence(said[key]),
            )
            for key in group.keys
        ]
        titles = ("key", "values", "default", "flag", "meaning")
        about = [group.about] if group.about.rstrip(".") != group.title else []
        parts += [f"## {group.title}", *about, table(titles, rows)]
    return "\n\n".join([*parts, *_presets()])


def flag_names(flag: Flag) -> Iterator[str]:
    """The names of a flag; ``--[no-]decode`` stands for both of its forms."""
    for name in flag.names:
        positive, _, negative = name.partition("/")
        yield positive.replace("--", "--[no-]", 1) if negative else positive


def _values(name: str, key: Key) -> str:
    """The type of a setting, and which values of it are allowed."""
    choices = {"cache": get_args(Cache), "merge": get_args(Merging), "algorithm": get_args(Algorithm)}
    if name in choices:
        return ", ".join(code(one.name) for one in choices[name])
    if name in ("method", "model"):
        return f"[{name} preset](#{name}-presets)" + ", folder or hub id" * (name == "model")
    kind = wanted(key.hint).removesuffix(" or nothing").removeprefix("a ")
    if key.rule is None:
        return kind
    if kind == "text":
        return key.rule.allowed
    return f"{kind}: {key.rule.allowed}" if kind.startswith("list") else f"{kind}, {key.rule.allowed}"


def _value(value: Any) -> str:
    """A value as YAML has it."""
    plain = list(value) if isinstance(value, tuple) else value
    return (
        yaml.safe_dump(plain, default_flow_style=True, width=1_000, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def _presets() -> Iterator[str]:
    """What the presets of methods and of models set."""
    yield "## Method presets\n\nWhat `--method NAME` sets. A file of the same keys, with `--config`, does the same."
    yield table(("method", "settings"), ((code(name), _listed(preset)) for name, preset in _all_presets("methods")))
    yield (
        "## Model presets\n\nWhat `--model NAME` sets, besides the negative prompt of its authors; "
        "`adaspa models NAME` has the licence, sizes and memory."
    )
    shown = ("weights", "height", "width", "frames", "fps", "steps", "negative_prompt")
    rows = []
    for name, preset in _all_presets("models"):
        size = " x ".join(str(preset[key]) for key in ("height", "width", "frames"))
        others = {key: value for key, value in preset.items() if key not in shown}
        rows.append((code(name), preset["weights"], size, str(preset["fps"]), str(preset["steps"]), _listed(others)))
    yield table(("model", "`weights`", "height x width x frames", "`fps`", "`steps`", "others"), rows)


def _all_presets(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings of each preset of a kind, without what is known of a checkpoint."""
    for name in preset_names(kind):
        content = yaml.safe_load((presets_root() / kind / f"{name}.yaml").read_text(encoding="utf-8"))
        yield name, {key: value for key, value in content.items() if key in keys_of(GenerateConfig)}


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(code(f"{key}: {_value(value)}") for key, value in settings.items())
