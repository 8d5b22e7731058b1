"""Warm-up: short, on few layers where weights are random, and it meets every kind of step that will be timed."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.bench import runner
from adaspa_cli.bench.warm_up import few_steps, first_blocks, warm_up
from adaspa_cli.config import resolve
from adaspa_cli.maskfiles.stored import run_policy
from adaspa_cli.sampling.handle import Handle
from tests.bench.benches import PROMPTS, make, settings, small_bench
from tests.pipelines import PROMPT, cogvideox, hunyuan_video, small_run

ALL = ["dense", "search", "sparse", "cached search", "sparse"]


@pytest.mark.parametrize(
    ("flags", "least", "phases"),
    [
        ({"model": "hunyuan"}, 2, ALL),
        ({"model": "cogvideox"}, 2, ALL),
        ({"model": "hunyuan"}, 5, ALL),
        ({"model": "hunyuan", "search_steps": (0, 30)}, 2, ["search", "cached search", "sparse"]),
        ({"model": "hunyuan", "method": "adaspa-no-lse-cache"}, 2, ["dense", "search", "sparse", "search", "sparse"]),
        ({"model": "hunyuan", "method": "minference"}, 2, ["dense"] + ["estimate"] * 4),
        ({"model": "fasthunyuan"}, 2, ["search", "sparse"]),
        ({"model": "hunyuan", "method": "full"}, 2, ["dense"] * 2),
        ({"model": "hunyuan", "method": "diffusers"}, 2, ["dense"] * 2),
        ({"model": "tiny"}, 1, ["dense", "search", "sparse", "sparse", "cached search", "sparse", "sparse"]),
        ({"model": "fasthunyuan", "method": "full"}, 9, ["dense"] * 9),
    ],
)
def test_it_is_as_short_as_it_can_be_and_meets_every_phase(
    flags: dict[str, Any], least: int, phases: list[str]
) -> None:
    config = few_steps(resolve(flags), least).config
    steps = config.sampling.steps
    assert [plan.phase for plan in run_policy(config.method, steps).plan(range(steps))] == phases


def test_it_decodes_nothing() -> None:
    assert not few_steps(resolve({"lossless": True}), 3).config.decodes


@pytest.mark.parametrize("pipeline", [hunyuan_video, cogvideox])
def test_block_lists_are_cut_and_whole_again_also_after_an_error(pipeline: Any) -> None:
    layers = {"num_layers": 3, **({"num_single_layers": 3} if pipeline is hunyuan_video else {})}
    transformer = pipeline(**layers).transformer
    names = [name for name in ("transformer_blocks", "single_transformer_blocks") if hasattr(transformer, name)]
    before = {name: (getattr(transformer, name), list(getattr(transformer, name))) for name in names}
    order = [name for name, _ in transformer.named_parameters()]

    def whole() -> bool:
        lists = all(getattr(transformer, name) is before[name][0] for name in names)
        return lists and all(list(getattr(transformer, name)) == before[name][1] for name in names)

    with first_blocks([transformer]):
        for name in names:
            assert list(getattr(transformer, name)) == before[name][1][:2]
    assert whole()
    with pytest.raises(ZeroDivisionError), first_blocks([transformer]):
        raise ZeroDivisionError
    assert whole()
    assert [name for name, _ in transformer.named_parameters()] == order


def test_a_model_cut_to_one_layer_stays_as_it_is() -> None:
    transformer = hunyuan_video(num_layers=1, num_single_layers=0).transformer
    with first_blocks([transformer]):
        assert (len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)) == (1, 0)
    assert (len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)) == (1, 0)


def calls_by_layer(pipe: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name in ("transformer_blocks", "single_transformer_blocks"):
        for index, block in enumerate(getattr(pipe.transformer, name)):
            block.register_forward_hook(lambda *_, key=f"{name}.{index}": counts.update([key]))
    return counts


@pytest.mark.parametrize(
    ("random_weights", "cache", "others"), [(True, "none", 0), (False, "none", 5), (True, "first-block", 5)]
)
def test_only_random_weights_without_a_cache_are_warmed_up_on_few_layers(
    random_weights: bool, cache: str, others: int, hunyuan_folder: Path, tmp_path: Path
) -> None:
    flags = {"random_weights": random_weights, "cache": cache, "first_block_threshold": 0.0}
    pipe = hunyuan_video(num_layers=3, num_single_layers=3)
    counts = calls_by_layer(pipe)
    resolved = resolve(small_run(hunyuan_folder, tmp_path, steps=10, search_steps=(2, 6), **flags))
    warm_up(pipe, resolved, 2, PROMPT, 0)
    assert few_steps(resolved, 2).config.sampling.steps == 5
    assert [counts[f"{name}.1"] for name in ("transformer_blocks", "single_transformer_blocks")] == [5, 5]
    assert [counts[f"{name}.2"] for name in ("transformer_blocks", "single_transformer_blocks")] == [others] * 2
    with Handle(pipe, resolved.config.method) as handle:
        assert handle.layers == 6


def test_a_bench_times_whole_runs_after_it(
    hunyuan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[Counter[str]] = []
    load = runner.load_pipeline

    def loaded(*arguments: Any, **named: Any) -> Any:
        pipe = load(*arguments, **named)
        pipe.transformer.transformer_blocks.extend(hunyuan_video().transformer.transformer_blocks[:1])
        counts.append(calls_by_layer(pipe))
        return pipe

    monkeypatch.setattr(runner, "load_pipeline", loaded)
    run = settings(hunyuan_folder, random_weights=True)
    rows = [{"method": "adaspa"}]
    make(small_bench(tmp_path, hunyuan_folder, run=run, rows=rows, warmup_steps=2), tmp_path / "out")
    # 4 steps of each of two prompts; the shortest warm-up that meets all phases of this schedule has 4 as well.
    assert counts[0]["transformer_blocks.1"] == 4 + 4 * len(PROMPTS)
    assert counts[0]["transformer_blocks.2"] == 4 * len(PROMPTS)
