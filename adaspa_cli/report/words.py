"""A run in words, for pages and the terminal: how much it left out, and how its time compares with that of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adaspa_cli.config.methods import DENSE
from adaspa_cli.report.schema import Report


def sparsity_words(report: Report, form: Callable[[float], str]) -> str | None:
    """γ, or of a ramp where it begins and ends, as ``0.4 rising to 0.95``; None of a run without one.

    Args:
        form: writes a γ.
    """
    if report.setting("algorithm") in DENSE:
        return None
    values = [step.sparsity for step in report.steps if step.sparsity is not None]
    values = values or [value for value in (report.setting("sparsity"),) if isinstance(value, int | float)]
    return span(values, form) if values else None


def span(values: Sequence[float], form: Callable[[float], str]) -> str:
    """The γ of the steps in words; the arguments are those of :func:`sparsity_words`."""
    values = list(values)
    if len(set(values)) == 1:
        return form(values[0])
    if values == sorted(values):
        return f"{form(values[0])} rising to {form(values[-1])}"
    if values == sorted(values, reverse=True):
        return f"{form(values[0])} falling to {form(values[-1])}"
    return f"{form(min(values))} to {form(max(values))}"


def run_name(report: Report) -> str:
    """The method, and the share of the video blocks that it was to leave out, or that it was dense."""
    method, share = report.setting("method"), sparsity_words(report, "{:.0%}".format)
    if share is None:
        return f"{method}, dense" if report.dense else str(method)
    return f"{method}, {share} left out"


def pace(seconds: float, other: float) -> str:
    """How fast something was beside another."""
    return f"{other / seconds:.2f} times as fast" if seconds <= other else f"{seconds / other:.2f} times as slow"


def why_slower(report: Report, other: Report) -> str | None:
    """Why a sparse run can be slower than the dense one; None where it was not, or where that is not the reason."""
    if report.seconds.denoising <= other.seconds.denoising or not other.dense or not report.searches:
        return None
    repaired = report.compensation is not None and report.compensation.after is not None
    extra = "the search and the repair cost" if repaired else "the search costs"
    return f"at small sizes {extra} more than {'they save' if repaired else 'it saves'}"


def compared_note(report: Report) -> str | None:
    """How a run and its video differ from the run that ``--compare-with`` named, in one line; None without one."""
    found = report.compared
    if found is None:
        return None
    psnr, ssim = found.mean("psnr"), found.mean("ssim")
    if psnr is None or ssim is None:
        likeness = f"videos not compared: {found.reason}"
    else:
        frames = "frames" if found.lossless else "frames of the compressed files"
        likeness = f"PSNR {psnr:.1f} dB, SSIM {ssim:.4f}, mean over the {frames}"
    return f"compared with {found.method}: {pace(1.0, found.speed_up)} in total; {likeness}"
