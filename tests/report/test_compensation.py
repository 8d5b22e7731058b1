"""What a report says of what made up for left-out blocks: figures of known calls, and a whole run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adaspa_cli.attention.compensated import Estimate
from adaspa_cli.config import resolve
from adaspa_cli.files.typed_json import from_json, to_json
from adaspa_cli.hooks.timing import Stopwatch
from adaspa_cli.masks.plan import DENSE, SPARSE
from adaspa_cli.report.compensation import compensation_use, error_note
from adaspa_cli.report.schema import Report
from adaspa_cli.sampling.records import AttentionCall
from tests.pipelines import Listener, make_reports, small_run
from tests.reports import small_report

PLUS = {
    "method": "adaspa-plus",
    "sparsity": 0.5,
    "search_rows": 4,
    "probes": 8,
}


def call(layer: int, step: int, estimate: Estimate | None = None) -> AttentionCall:
    with Stopwatch(torch.device("cpu")) as watch:
        pass
    action = DENSE if estimate is None else SPARSE
    return AttentionCall(layer, step, action, None, watch.span, estimate or Estimate())


def heads(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_figures_are_of_all_heads_and_calls_of_a_place() -> None:
    calls = [
        call(0, 0),
        call(1, 0),
        call(0, 1, Estimate(0.02, heads(0.2, 0.4), heads(0.3, 0.1), heads(0.1, 0.1))),
        call(1, 1, Estimate(0.02, heads(0.6, 0.8), heads(0.3, 0.1), heads(0.3, 0.1))),
        call(1, 1, Estimate(0.02, heads(0.0, 0.2), heads(0.3, 0.1), heads(0.1, 0.1))),
    ]
    found = compensation_use(calls)
    assert found is not None
    assert found.work == pytest.approx(3 * 0.02 / 5)
    assert found.pooled == pytest.approx(2.2 / 6)
    assert found.after == pytest.approx(math.sqrt((5 * 0.01 + 0.09) / 6), abs=1e-6)
    assert found.steps == (1,)
    assert [entry.layer for entry in found.layers] == [0, 1]
    assert found.layers[1].pooled == pytest.approx((0.4,))
    assert found.layers[1].after == pytest.approx((math.sqrt(0.12 / 4),), abs=1e-6)


def test_there_is_none_where_nothing_is_made_up_for() -> None:
    assert compensation_use([call(0, 0), call(0, 1)]) is None
    assert error_note(from_json(Report, small_report())) is None


def test_a_remainder_alone_has_no_error_estimate() -> None:
    found = compensation_use([call(0, 1, Estimate(0.02, heads(0.2, 0.4)))])
    assert found is not None
    assert (found.before, found.after) == (None, None)
    assert error_note(from_json(Report, small_report(compensation=to_json(found)))) is None


@pytest.fixture(scope="module")
def run(hunyuan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The report of a run, and its page."""
    out = tmp_path_factory.mktemp("out")
    (report,) = make_reports(resolve(small_run(hunyuan_folder, out, **PLUS)), Listener())
    (page,) = out.glob("*.report.html")
    return report, page


def test_a_run_estimates_its_own_error(run: tuple[dict[str, Any], Path]) -> None:
    report, _ = run
    found = report["compensation"]
    assert json.loads(json.dumps(found)) == found
    assert found["steps"] == [2, 3]
    assert [entry["layer"] for entry in found["layers"]] == [0, 1, 2, 3]
    assert 0 < found["after"] < 1
    assert 0 < found["before"] < 1
    assert 0 < found["pooled"] < 1
    assert 0 < found["work"] < 0.5
    note = error_note(from_json(Report, report))
    assert note is not None
    assert note.startswith("estimated attention error ")
    assert "% without repair)" in note


def test_each_step_has_its_sparsity(hunyuan_folder: Path, tmp_path: Path) -> None:
    flags = small_run(hunyuan_folder, tmp_path, **PLUS) | {"sparsity": "0:0.2,50%:0.6", "search_steps": (0,)}
    (report,) = make_reports(resolve(flags), Listener())
    assert [step["sparsity"] for step in report["steps"]] == [0.2, 0.2, 0.6, 0.6]
    assert report["search_steps"] == {"asked": [0], "planned": [0, 2], "done": [0, 2]}


def test_the_page_shows_it_by_layer_and_step(run: tuple[dict[str, Any], Path]) -> None:
    text = run[1].read_text()
    assert "Estimated attention error" in text
    assert "Error after repair, steps 2 to 3" in text
    assert 'title="layer 3, step 2: ' in text
