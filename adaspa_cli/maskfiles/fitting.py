"""The flags by which a run gets the settings that its mask file was searched with. Imports nothing heavy."""

from __future__ import annotations

from adaspa_cli.config.load import method_config
from adaspa_cli.config.methods import SearchingConfig
from adaspa_cli.config.presets import preset_names
from adaspa_cli.config.schema import MethodConfig
from adaspa_cli.maskfiles.description import Description


def flags_to_fit(facts: Description, config: MethodConfig) -> tuple[str, ...]:
    """The fewest flags to add to a run: some for the settings of its own method, or another method.

    Args:
        facts: of the file.
        config: of the run, of a method that searches.
    """
    own, same = _differing(facts, config), config.searching.name == facts.method.algorithm
    if not own or (same and len(own) == 1):
        return own
    found = [own] if same else []
    for name in preset_names("methods"):
        other = method_config(name, {"sparsity": facts.method.sparsity})
        fits = isinstance(other.algorithm, SearchingConfig) and other.algorithm.name == facts.method.algorithm
        if fits and not (same and name == config.method):  # which alone undoes no flag
            found.append((f"--method {name}", f"--sparsity {facts.method.sparsity}", *_differing(facts, other)))
    return min(found or [own], key=len)


def _differing(facts: Description, config: MethodConfig) -> tuple[str, ...]:
    """Flags for the settings of a method that are not those of the file; a ranking serves other sparsities."""
    theirs, method, ranked = facts.method, config.searching, facts.ranked is not None
    budget = "layer" if theirs.layer_budget else "head-adaptive" if theirs.head_adaptive else "row"
    spread = theirs.layer_budget == method.layer_budget and (ranked or theirs.head_adaptive == method.adapts_heads)
    fits = {
        f"--method {theirs.algorithm}": theirs.algorithm == method.name,
        f"--sparsity {theirs.sparsity}": not method.sparsity_ramp and (ranked or theirs.sparsity == method.sparsity),
        f"--block-size {facts.block_size}": facts.block_size == method.block_size,
        f"--budget {budget}": spread,
        f"--selection {theirs.selection}": theirs.selection == method.selects_by,
        f"--token-order {facts.layout.order}": facts.layout.order == config.order,
    }
    return tuple(flag for flag, fitting in fits.items() if not fitting)
