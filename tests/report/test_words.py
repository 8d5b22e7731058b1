"""A run in words: sparsity that is constant or changes by step, and times that compare forwards."""

import dataclasses
from typing import Any

import pytest

from adaspa_cli.files.typed_json import from_json
from adaspa_cli.report.compare import Compared
from adaspa_cli.report.page import page
from adaspa_cli.report.schema import ComparedRun, Report
from adaspa_cli.report.words import compared_note, pace, run_name, sparsity_words, why_slower
from tests.reports import small_report

SEARCH = {"layer": 0, "branch": "cond", "sample": 0, "step": 0, "loaded": False, "density": [0.2], "recall": None}


def sparse_report(*sparsities: float, seconds: float = 3.0, **changed: Any) -> Report:
    """A report with a step for each sparsity."""
    chosen = {"method": "adaspa-plus", "algorithm": "adaspa", "sparsity": sparsities[-1]}
    step = {"phase": "sparse", "seconds": 1.0, "attention": 0.5, "density": 0.2}
    report = small_report(
        settings={key: {"value": value, "origin": "flag"} for key, value in chosen.items()},
        steps=[step | {"step": number, "sparsity": value} for number, value in enumerate(sparsities)],
        searches=[SEARCH],
        **changed,
    )
    report["seconds"]["denoising"] = seconds
    return from_json(Report, report)


@pytest.mark.parametrize(
    ("sparsities", "words"),
    [
        ((0.8, 0.8), "adaspa-plus, 80% left out"),
        ((0.4, 0.7, 0.95), "adaspa-plus, 40% rising to 95% left out"),
        ((0.9, 0.5), "adaspa-plus, 90% falling to 50% left out"),
        ((0.5, 0.9, 0.6), "adaspa-plus, 50% to 90% left out"),
    ],
)
def test_a_ramp_is_named_from_its_beginning_to_its_end(sparsities: tuple[float, ...], words: str) -> None:
    assert run_name(sparse_report(*sparsities)) == words
    assert words in page(sparse_report(*sparsities), None)


def test_reports_without_sparsities_of_steps() -> None:
    dense = from_json(Report, small_report())
    assert (run_name(dense), sparsity_words(dense, str)) == ("full, dense", None)
    settings = {"method": {"value": "adaspa"}, "algorithm": {"value": "adaspa"}, "sparsity": {"value": 0.8}}
    assert sparsity_words(from_json(Report, small_report(settings=settings)), "{:g}".format) == "0.8"


def test_a_slower_run_is_said_to_be_slower_and_why() -> None:
    dense, slow = from_json(Report, small_report()), sparse_report(0.4, 0.95, seconds=6.0)
    assert (pace(2.0, 3.0), pace(6.0, 3.0)) == ("1.50 times as fast", "2.00 times as slow")
    assert why_slower(slow, dense) == "at small sizes the search costs more than it saves"
    assert why_slower(sparse_report(0.8, seconds=2.0), dense) is None
    assert why_slower(slow, sparse_report(0.8)) is None
    text = page(slow, None, Compared(dense, None))
    assert "<b>adaspa-plus, 40% rising to 95% left out</b> was 2.00 times as slow as with <b>full, dense</b>" in text
    use = {"work": 0.1, "pooled": 0.1, "before": 0.2, "after": 0.1}
    repaired = sparse_report(0.8, seconds=6.0, compensation=use)
    assert why_slower(repaired, dense) == "at small sizes the search and the repair cost more than they save"


def test_what_was_compared_is_one_line() -> None:
    def note(compared: ComparedRun | None) -> str | None:
        return compared_note(dataclasses.replace(sparse_report(0.8), compared=compared))

    assert note(None) is None
    beside = "compared with full: 2.00 times as fast in total; "
    both = ComparedRun("full", 2.0, True, (30.0, 32.0), (0.9, 0.95), dense=True)
    assert note(both) == f"{beside}PSNR 31.0 dB, SSIM 0.9250, mean over the frames"
    files = dataclasses.replace(both, lossless=False)
    assert note(files) == f"{beside}PSNR 31.0 dB, SSIM 0.9250, mean over the frames of the compressed files"
    assert note(ComparedRun("full", 0.5, False, (), (), "no video")) == (
        "compared with full: 2.00 times as slow in total; videos not compared: no video"
    )
