"""What a newcomer must know of a page stands on it, where it is needed only; and texts stay texts."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.bench.page import page as bench_page
from adaspa_cli.bench.schema import Bench
from adaspa_cli.files.typed_json import from_json
from adaspa_cli.masks.plan import PLANS
from adaspa_cli.report import meanings
from adaspa_cli.report.compare import Compared
from adaspa_cli.report.page import page
from adaspa_cli.report.schema import ComparedRun, Report
from tests.pages import read
from tests.reports import small_bench, small_report, small_row

ODD = """"'><td onclick="x()" & <!--</td></title></pre><script>y()</script>{{ 7 * 7 }}"""


def sparse_report(**changed: Any) -> Report:
    """A report of a sparse run with a repair."""
    settings = {"method": "adaspa-plus", "algorithm": "adaspa", "sparsity": 0.8, "block_size": 32, "steps": 2}
    step = {"seconds": 1.0, "attention": 0.5, "density": 0.4}
    search = {"layer": 0, "branch": "cond", "sample": 0, "step": 0, "loaded": False, "density": [0.2], "recall": [0.7]}
    layer = {"layer": 0, "pooled": [0.2], "before": [0.2], "after": [0.1]}
    figures = {"work": 0.1, "pooled": 0.1, "before": 0.2, "after": 0.1, "steps": [1], "layers": [layer]}
    wanted = {
        "settings": {key: {"value": value, "origin": "flag"} for key, value in settings.items()},
        "steps": [{**step, "step": 0, "phase": "search"}, {**step, "step": 1, "phase": "cached search"}],
        "density": 0.4,
        "searches": [search],
        "compensation": figures,
    }
    return from_json(Report, small_report(**wanted | changed))


def test_every_phase_is_explained() -> None:
    assert set(meanings.PHASES) == {plan.phase for plan in PLANS} | {"skipped"}


def test_a_page_explains_what_it_shows() -> None:
    compared = ComparedRun("full", 2.0, False, (31.0,), (0.9,), dense=True)
    report = sparse_report()
    beside = Compared(from_json(Report, small_report()), None)
    words = "".join(read(page(dataclasses.replace(report, compared=compared), None, beside)).text)
    assert "Density is the share of the blocks of attention (32 x 32 pairs of tokens) that were computed" in words
    assert "The share left out, in the run's name, counts blocks without text" in words
    for phase in ("dense", "search", "cached search"):
        assert f"{phase}: {meanings.PHASES[phase]}" in words
    assert meanings.PHASES["sparse"] not in words
    assert "Steps are numbered from 0" in words
    for said in (meanings.PSNR, meanings.RECALL, meanings.POOLED, meanings.REPAIR_ERROR):
        assert words.count(said) == 1


def test_a_page_explains_nothing_that_it_does_not_show() -> None:
    words = "".join(read(page(from_json(Report, small_report()), None)).text)
    for said in ("Density is", meanings.PHASES["dense"], meanings.PSNR, meanings.RECALL, meanings.POOLED):
        assert said not in words
    merged = sparse_report(settings={"method": {"value": "tomesd"}, "algorithm": {"value": "full"}})
    assert "counts blocks without text" not in "".join(read(page(merged, None)).text)


def report_page(said: str) -> str:
    report = sparse_report(
        prompt=said,
        random_weights=said,
        created=said,
        machine=small_report()["machine"] | {"cpu": said},
        model=small_report()["model"] | {"name": said},
        video=small_report()["video"] | {"file": f"{said}.mp4"},
        settings={
            "method": {"value": said, "origin": said},
            "algorithm": {"value": "adaspa"},
            "negative_prompt": {"value": said, "origin": said},
            "model": {"value": said, "origin": "flag"},
        },
        loras=[{"file": said, "sha256": "0", "scale": 1.0, "stage": said}],
        attention_backend=said,
    )
    return page(report, None)


def compared_page(said: str) -> str:
    compared = ComparedRun(said, 2.0, False, (), (), said)
    other = from_json(Report, small_report(settings={"method": {"value": said}, "algorithm": {"value": "full"}}))
    return page(dataclasses.replace(sparse_report(), compared=compared), None, Compared(other, None))


def bench_of(said: str) -> str:
    failure = {"file": said, "prompt": said, "seed": 0, "error": said, "hint": said}
    rows = [small_row(name=said, failures=[failure])]
    bench = small_bench(
        title=said, about=said, notes=[said], prompts=[said], source=said, random_weights=said, rows=rows
    )
    return bench_page(from_json(Bench, bench), Path("nowhere"))


@pytest.mark.parametrize("made", [report_page, compared_page, bench_of], ids=["run", "compared", "bench"])
def test_texts_add_no_tag_and_no_attribute(made: Callable[[str], str]) -> None:
    odd, plain = read(made(ODD)), read(made("plain"))
    assert [(tag, list(about)) for tag, about in odd.tags] == [(tag, list(about)) for tag, about in plain.tags]
    assert ODD in "".join(odd.text)
    assert all(about.keys() <= {"class"} for tag, about in odd.tags if tag in ("td", "th"))
