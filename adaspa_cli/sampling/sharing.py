"""What does not go with several processes for one video, refused by name before anything slow begins."""

from __future__ import annotations

from collections.abc import Mapping

from adaspa_cli.config.schema import MethodConfig
from adaspa_cli.distributed.team import Team
from adaspa_cli.errors import ConfigError

UNSHARED: Mapping[str, Mapping[str, str]] = {
    "method": {"diffusers": "use --method full, which makes the same video"},
    "merge": {"tomesd": "it matches tokens by all heads at once: use one process"},
    "cache": dict.fromkeys(("adacache", "first-block", "magcache"), "use one process, or another --cache"),
}
"""What needs all tokens and all heads in one place, and what to do about it."""


def check_shared(team: Team, config: MethodConfig, heads: int) -> None:
    """Refuse what a team cannot do together.

    Args:
        team: that shares the tokens.
        config: the method.
        heads: of a layer.

    Raises:
        ConfigError: names what it is.
    """
    if team.alone:
        return
    chosen = {"method": "" if config.algorithm.attached else config.algorithm.name}
    chosen |= {"merge": config.merge.name, "cache": config.cache.name}
    for key, name in chosen.items():
        if name in UNSHARED[key]:
            raise ConfigError(
                f"{key} '{name}' does not go with several processes for one video", hint=f"{UNSHARED[key][name]}"
            )
    if heads < team.size:
        raise ConfigError(f"{team.size} processes cannot share {heads} heads", hint=f"at most {heads} for one video")
