"""Merges presets, a YAML file and flags into one configuration, with the origin of each value.

Later wins: defaults < method preset < model preset < ``--config FILE`` < flags.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaspa_cli.config.caches import CACHES
from adaspa_cli.config.fields import fit, shown, wanted
from adaspa_cli.config.flat import Config, build, keys_of
from adaspa_cli.config.merging import MERGES
from adaspa_cli.config.model_source import check_known_architecture, identify
from adaspa_cli.config.presets import PAPERS_METHOD, preset_names, presets_root, unnamed_method
from adaspa_cli.config.ramp import SparsityRamp
from adaspa_cli.config.schema import GenerateConfig, MethodConfig
from adaspa_cli.config.yaml_text import parse_yaml, yaml_line
from adaspa_cli.errors import ConfigError, nearest

# Of a model preset, and no settings: what random weights are built from, and what is known of the checkpoint.
ARCHITECTURE, CARD = "architecture", "card"

_MAY_BE_EMPTY = ("negative_prompt",)


@dataclass(frozen=True)
class Setting:
    """A value and where it came from."""

    value: Any
    origin: str


@dataclass(frozen=True)
class Resolved:
    """A configuration, and the origin of each of its values by key."""

    config: GenerateConfig
    settings: Mapping[str, Setting]

    def flat(self) -> dict[str, Any]:
        """Key to value, in plain types; without late keys that have their default."""
        known = keys_of(GenerateConfig)
        return {
            key: _plain(setting.value)
            for key, setting in self.settings.items()
            if not known[key].late or setting.value != known[key].default
        }

    def origins(self) -> dict[str, str]:
        """Key to origin."""
        return {key: setting.origin for key, setting in self.settings.items()}

    def as_yaml(self) -> str:
        """A file that ``--config`` takes, with the origin of each value as a comment."""
        lines = []
        for key, setting in self.settings.items():
            text = f"{key}: {yaml_line(_plain(setting.value))}"
            lines.append(f"{text:<40} # {setting.origin}")
        return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def load_preset(kind: str, name: str) -> dict[str, Any]:
    """Read a preset.

    Raises:
        ConfigError: there is none of that name.
    """
    path = presets_root() / kind / f"{name}.yaml"
    known = preset_names(kind)
    if name not in known:
        raise ConfigError(f"unknown {kind[:-1]} '{name}'{nearest(name, known)}", hint=f"known: {', '.join(known)}")
    values = read_mapping(path)
    for key in (ARCHITECTURE, CARD):
        values.pop(key, None)
    return check_values(values, str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a flat YAML file of settings.

    Raises:
        ConfigError: unreadable, not a mapping, an unknown key or a value of the wrong type.
    """
    return check_values(read_mapping(path), str(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: unreadable, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {reason}") from error
    content = copy.deepcopy(_parsed(text, str(path)))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold 'key: value' lines, not a {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


_parsed = functools.lru_cache(maxsize=64)(parse_yaml)  # each preset once in a process that asks for all of them


def check_values(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return all values in the types that their keys have; raises as :func:`check_value` does."""
    values = expand_ramp(values, f"sparsity in {origin}")
    return {key: check_value(key, value, origin) for key, value in values.items()}


def expand_ramp(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Of the settings of one source, make a sparsity by step its last sparsity and the ramp.

    Raises:
        ConfigError: as :meth:`~adaspa_cli.config.ramp.SparsityRamp.parse`, or another ramp is given beside it.
    """
    found, given, beside = dict(values), values.get("sparsity"), values.get("sparsity_ramp")
    if isinstance(given, Mapping | str):
        ramp = SparsityRamp.parse(given, origin)
        found |= {"sparsity": ramp.starts[-1].sparsity} | ({} if ramp.constant else {"sparsity_ramp": str(ramp)})
    if not isinstance(beside, str):
        return found
    ramp = SparsityRamp.parse(beside, "sparsity_ramp")
    last = ramp.starts[-1].sparsity
    if found.setdefault("sparsity", last) != last or SparsityRamp.parse(found["sparsity_ramp"]) != ramp:
        raise ConfigError(
            f"{origin} is {shown(given)}, and sparsity_ramp beside it is {beside}",
            hint="give one of the two; sparsity takes steps as well",
        )
    return found


def override(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of two sources, of which the later one wins: its sparsity ends the ramp of the earlier one."""
    ends = "sparsity" in later
    return {key: value for key, value in earlier.items() if not (ends and key == "sparsity_ramp")} | {**later}


def check_value(key: str, value: Any, origin: str) -> Any:
    """Return ``value`` in the type that ``key`` has.

    Raises:
        ConfigError: the key is unknown, or does not take the value.
    """
    known = keys_of(GenerateConfig)
    if key not in known:
        raise ConfigError(f"unknown key '{key}' in {origin}{nearest(key, known)}")
    hint, rule = known[key].hint, known[key].rule
    fits, converted = fit(_as_yaml_holds_it(value), hint)
    if not fits:
        raise ConfigError(f"{key} in {origin} must be {wanted(hint)}, got {shown(value)}")
    if converted == "" and key not in _MAY_BE_EMPTY:  # as of "$MODEL", unset: as a path it is the current folder
        raise ConfigError(f"{key} in {origin} is empty", hint="leave it out for its default")
    if converted is not None and rule is not None:
        rule(key, converted)
    return converted


def _as_yaml_holds_it(value: Any) -> Any:
    """Of what a program may give: a path as text, a range as a list, and numbers of NumPy or torch as Python's."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple | range):
        return [_as_yaml_holds_it(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def parse_steps(text: str) -> tuple[int, ...]:
    """Read steps as a flag holds them: ``10,30``.

    Raises:
        ConfigError: it is something else.
    """
    try:
        if not text.isascii() or "_" in text:  # which Python takes for numbers, as in 1_000
            raise ValueError
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"search steps must be comma-separated whole numbers, got {shown(text)}", hint="--search-steps 10,30"
        ) from None


def _preset_of_hub_id(hub_id: str) -> str | None:
    """The model preset whose weights a hub id names, in any case; not one that chooses among pipelines of the id.

    Reads the presets one by one, which takes as long as the rest of a start: for hub ids alone.
    """
    for name in preset_names("models"):
        preset = load_preset("models", name)
        if "pipeline" not in preset and str(preset["weights"]).lower() == hub_id.lower():
            return name
    return None


def resolve(
    flags: Mapping[str, Any] | None = None,
    file: Path | None = None,
    origin: str = "flag",
    default_method: str = PAPERS_METHOD,
    *,
    download: bool = True,
    without: Collection[str] = (),
) -> Resolved:
    """Merge all sources into one configuration.

    Args:
        flags: what was given on the command line, by key.
        file: of ``--config``.
        origin: what ``flags`` are called where the origin of a value is shown.
        default_method: where no source names one; with a mask file it is ``adaspa``.
        download: whether the hub may be asked what a model is.
        without: keys of ``file`` that are left out.

    Raises:
        ConfigError: an unknown name or key, or an impossible value, with its origin.
        ModelError: the model is neither a preset nor a checkpoint.
    """
    from_file = {key: value for key, value in read_yaml(file).items() if key not in without} if file else {}
    from_flags = {
        key: check_value(key, value, f"flag --{key.replace('_', '-')}")
        for key, value in expand_ramp(flags or {}, "sparsity").items()
    }
    unnamed = unnamed_method(from_file | from_flags, default_method)
    named = {"method": unnamed, "model": "tiny"} | from_file | from_flags
    _check_own_choice(named["method"], load_preset("methods", named["method"]), from_file | from_flags)
    presets = preset_names("models")
    if named.get("random_weights") or not download:
        check_known_architecture(named["model"], presets, _preset_of_hub_id)
    source = identify(named["model"], presets, _preset_of_hub_id)
    layers = [
        ("default", {"method": unnamed}),
        (f"method preset {named['method']}", load_preset("methods", named["method"])),
        (f"model preset {source.preset}", load_preset("models", source.preset)),
        (f"model {named['model']}", {"weights": source.weights} if source.weights else {}),
        (f"file {file}", from_file),
        (origin, from_flags),
    ]
    settings = {key: Setting(known.default, "default") for key, known in keys_of(GenerateConfig).items()}
    for origin, values in _with_one_ramp(layers):
        if "sparsity" in values:  # one for the whole run, unless the same source has a ramp
            settings["sparsity_ramp"] = Setting(None, "default")
        settings.update({key: Setting(value, origin) for key, value in _exact_search(values).items()})
    seeds = settings["seed"]
    settings["seed"] = Setting(tuple(dict.fromkeys(seeds.value)), seeds.origin)  # one that is given twice is made once
    config = _build(GenerateConfig, {key: setting.value for key, setting in settings.items()})
    return Resolved(config, settings)


def _with_one_ramp(layers: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """A model's preset knows how sparse a method of one sparsity may be, and leaves the ramp of a method's preset."""
    default, method, (origin, model), *others = layers
    if "sparsity_ramp" in method[1]:
        model = {key: value for key, value in model.items() if key != "sparsity"}
    return [default, method, (origin, model), *others]


def _exact_search(values: Mapping[str, Any]) -> dict[str, Any]:
    """Search steps that come without the number of steps they are meant for are exact: they are not scaled."""
    exact = "search_steps" in values and "search_steps_for" not in values
    return {**values, "search_steps_for": None} if exact else dict(values)


def _check_own_choice(method: str, preset: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Refuse another cache or merging than the one that the method itself is."""
    for key in ("cache", "merge"):
        own = preset.get(key)
        if own is not None and values.get(key, own) != own:
            raise ConfigError(
                f"method {method} is itself the {key} '{own}', and cannot run with {key} '{values[key]}'",
                hint="choose one of them; --method full is dense attention without any",
            )


def method_config(method: str, settings: Mapping[str, Any]) -> MethodConfig:
    """A method preset with some of its settings changed.

    Raises:
        ConfigError: an unknown method or setting, or an impossible value.
    """
    known = keys_of(MethodConfig)
    for key in settings:
        if key not in known and key in keys_of(GenerateConfig):
            raise ConfigError(
                f"'{key}' is a setting of adaspa generate, not of a method",
                hint="set it on the pipeline or in its call; docs/diffusers.md says what apply() takes",
            )
        if key not in known:
            raise ConfigError(
                f"unknown setting '{key}'{nearest(key, known)}", hint=f"known: {', '.join(sorted(known))}"
            )
    checked = check_values(settings, "the settings")
    preset = load_preset("methods", check_value("method", method, "the settings"))
    _check_own_choice(method, preset, checked)
    defaults = {name: key.default for name, key in known.items()}
    if "sparsity" in checked:
        checked.setdefault("sparsity_ramp", None)
    return _build(MethodConfig, {**defaults, **preset, "method": method, **_exact_search(checked)})


def _build(section: type[Config], values: Mapping[str, Any]) -> Config:
    if values["cache"] in MERGES and values["cache"] not in CACHES:
        raise ConfigError(f"{values['cache']} merges tokens and is no cache", hint=f"use --method {values['cache']}")
    return build(section, values)
