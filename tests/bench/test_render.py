"""A bench's figures as text, from figures alone."""

from dataclasses import replace

import pytest

from adaspa_cli.bench.render import tables
from adaspa_cli.bench.schema import QUALITY, Bench, Missing, Summary
from adaspa_cli.files.typed_json import from_json
from tests.reports import small_bench

ROWS = 9


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (ROWS, "LPIPS n/a: it is not there."),  # the dense row, which is compared with nothing, does not count
        (ROWS - 1, "LPIPS n/a (8 of 9 rows): it is not there."),
        (2, "LPIPS n/a (row 0, row 1): it is not there."),
    ],
)
def test_a_note_names_few_rows_and_counts_many(missing: int, said: str) -> None:
    bench = from_json(Bench, small_bench())
    (dense,) = bench.rows
    figures = dict.fromkeys(QUALITY, Summary(1.0, 1.0, 1.0, 1.0, "range", 1))
    nothing = dict.fromkeys(("psnr", "ssim", "st_lpips", "lpips"), Missing("the words of an older version"))
    dense = replace(dense, reference=dense.name, quality=figures | nothing)
    without = figures | {"lpips": Missing("it is not there")}
    rows = [replace(dense, name=f"row {at}", quality=without if at < missing else figures) for at in range(ROWS)]
    quality = tables(replace(bench, rows=(dense, *rows)))[0]
    assert quality.lines[0][1:3] == ["–", "–"]
    assert [note for note in quality.notes if "n/a" in note] == [said]
