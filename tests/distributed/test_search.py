"""Several processes that search masks together write the file that one process writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from adaspa_cli.config import resolve
from adaspa_cli.config.search_masks import SearchOptions
from adaspa_cli.distributed.place import Place
from adaspa_cli.distributed.teams import Teams
from adaspa_cli.distributed.world import World
from adaspa_cli.jobs.search_masks import follow_search, search_share
from adaspa_cli.maskfiles import MaskFile
from tests.distributed.ranks import together
from tests.pipelines import PROMPT, Listener, cogvideox, hunyuan_video, save, small_run

PROMPTS = [PROMPT, "two red squares move slowly to the right"]
SCORES = {"selection": "output-error", "budget": "layer", "token_order": "hilbert"}

CASES: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "ranked": (lambda: hunyuan_video(num_attention_heads=3), {}, {"keep_sums": True, "keep_ranking": 0.8}),
    "by scores": (lambda: hunyuan_video(num_attention_heads=3), SCORES, {}),
    "both branches, text first": (lambda: cogvideox(num_attention_heads=3), {"method": "frame-region"}, {}),
}


@pytest.mark.parametrize(("make", "flags", "options"), CASES.values(), ids=CASES.keys())
def test_the_file_is_that_of_one_process(
    make: Callable[[], Any], flags: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    size = {"height": 64, "width": 96, "frames": 9}
    resolved = resolve(small_run(save(make(), tmp_path / "pipeline"), tmp_path / "videos", **size | flags))
    alone = search_share(resolved, SearchOptions(tmp_path / "alone.safetensors", **options), PROMPTS, Listener(), None)
    assert alone is not None
    out = SearchOptions(tmp_path / "together.safetensors", **options)

    def case(teams: Teams) -> None:
        place = Place(teams.all.rank, 2, teams.all.rank)
        world = World(place, teams, "cpu", dist.distributed_c10d._get_default_store())
        if world.leads:
            search_share(resolved, out, PROMPTS, Listener(), None, world)
        else:
            follow_search(resolved, out, world)

    together(2, tmp_path, case)
    found = MaskFile.open(out.out)
    assert found.description == alone.description
    kinds = [(place, kind) for place in alone.description.places() for kind in alone.description.kinds()]
    assert kinds
    for place, kind in kinds:
        assert torch.equal(found.read(place, kind), alone.read(place, kind)), (place, kind)
