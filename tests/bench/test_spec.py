"""A bench file: rows and what multiplies them, and one clear line for everything that is wrong with it."""

from pathlib import Path
from typing import Any

import pytest

from adaspa_cli.bench.paper import load_tables, paper_figures
from adaspa_cli.bench.plan import plan_bench
from adaspa_cli.bench.spec import BenchSpec, by_keys, load_bench, parse_bench
from adaspa_cli.config import resolve
from adaspa_cli.config.presets import preset_names
from adaspa_cli.errors import ConfigError
from adaspa_cli.files.typed_json import to_json

PATH = Path("bench.yaml")


def parse(**content: Any) -> BenchSpec:
    usual: dict[str, Any] = {"prompts": ["a circle"], "rows": [{"method": "full"}, {"method": "adaspa"}]}
    return parse_bench(usual | content, PATH)


def test_rows_are_named_after_what_they_set() -> None:
    spec = parse(rows=[{"method": "full"}, {"method": "adaspa", "sparsity": 0.9}, {"name": "mine", "method": "adaspa"}])
    assert [row.name for row in spec.rows] == ["full", "adaspa sparsity=0.9", "mine"]
    assert [row.folder for row in spec.rows] == ["full", "adaspa-sparsity=0.9", "mine"]


def test_each_makes_a_row_of_every_combination_and_one_series_of_them() -> None:
    each = {"sparsity": [0.5, 0.8], "search_steps": [[1], [1, 3]]}
    spec = parse(rows=[{"method": "adaspa", "each": each}])
    assert [row.name for row in spec.rows] == [
        "adaspa sparsity=0.5 search_steps=1",
        "adaspa sparsity=0.5 search_steps=1,3",
        "adaspa sparsity=0.8 search_steps=1",
        "adaspa sparsity=0.8 search_steps=1,3",
    ]
    assert {row.series for row in spec.rows} == {"adaspa"}
    assert spec.rows[3].settings == {"method": "adaspa", "sparsity": 0.8, "search_steps": (1, 3)}


def test_a_row_takes_every_key_that_a_run_has() -> None:
    """So that a cache, or any setting that comes later, needs no code here."""
    config = resolve({}).flat()
    for key in set(config) - {"prompt", "prompts", "seed", "out", "resume", "lossless"}:
        value = config[key]
        if value is not None:
            assert parse(rows=[{key: value}]).rows[0].settings[key] is not None


def test_prompts_come_from_a_file_beside_the_bench(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# two\na circle\na square\n")
    spec = parse_bench({"prompts": "prompts.txt", "rows": [{"method": "full"}]}, tmp_path / "bench.yaml")
    assert spec.prompts == ("a circle", "a square")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"row": []}, r"unknown key 'row' in bench.yaml; did you mean 'rows'\?"),
        ({"rows": []}, "must hold one or more rows"),
        ({"rows": ["full"]}, "row 1 of bench.yaml must hold 'key: value' lines, got 'full'"),
        ({"rows": [{"method": "full", "sparsty": 1}]}, r"unknown key 'sparsty' in row 1.*; did you mean 'sparsity'\?"),
        ({"rows": [{"sparsity": "much"}]}, "sparsity in row 1 of bench.yaml must be a number, got 'much'"),
        ({"rows": [{"method": "full"}, {"method": "full"}]}, "two rows in bench.yaml have the name 'full'"),
        ({"rows": [{"name": "a b"}, {"name": "a-b"}]}, "two rows in bench.yaml have the folder 'a-b'"),
        ({"rows": [{"method": "full", "each": {"frames": 5}}]}, "'each' of row 1 of bench.yaml must hold lists"),
        ({"rows": [{"seed": 1}]}, "seed in row 1 of bench.yaml: the bench sets it itself"),
        ({"run": {"out": "x"}}, "out in 'run' of bench.yaml: the bench sets it itself"),
        ({"run": 3}, "'run' of bench.yaml must hold 'key: value' lines, got 3"),
        ({"prompts": []}, "bench.yaml must hold prompts"),
        ({"prompts": [" "]}, "a prompt is empty"),
        ({"prompts": "/no/such/file"}, "cannot read prompts"),
        ({"seeds": ["x"]}, "seed in bench.yaml must be a list of whole numbers"),
        ({"warmup_steps": -1}, "warmup_steps in bench.yaml must be at least 0, got -1"),
        ({"warmup_steps": 10**9}, "warmup_steps in bench.yaml must be at most 10000, got 1000000000"),
        ({"plots": 3}, "plots in bench.yaml must be a list of plots, got 3"),
        ({"plots": None}, "plots in bench.yaml must be a list of plots, got None"),
        ({"plots": [{"x": "sparsity", "y": "beauty"}]}, "a plot in bench.yaml must be x and y"),
        ({"plots": [{"x": "sparsty", "y": "psnr"}]}, "x of a plot in bench.yaml must be .*; did you mean 'sparsity'"),
        ({"plots": [{"x": "method", "y": "psnr"}]}, "x of a plot in bench.yaml must be .*, got 'method'"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_place(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**content)


def test_one_bench_must_be_named() -> None:
    for preset, file in ((None, None), ("main", PATH)):
        with pytest.raises(ConfigError, match="name one bench"):
            load_bench(preset, file)
    with pytest.raises(ConfigError, match="unknown bench 'tiny-smok'; did you mean 'tiny-smoke'"):
        load_bench("tiny-smok", None)


@pytest.mark.parametrize("name", [None, ""])
def test_a_row_with_an_empty_name_is_called_by_its_settings(name: str | None) -> None:
    assert [row.name for row in parse(rows=[{"name": name, "method": "full"}]).rows] == ["full"]


@pytest.mark.parametrize("x", ["sparsity", "frames", "search_steps", "latency", "density", "max_error"])
def test_a_plot_is_over_a_figure_or_a_setting(x: str) -> None:
    assert [plot.x for plot in parse(plots=[{"x": x, "y": "psnr"}]).plots] == [x]


def test_the_folder_of_a_row_with_a_long_name_can_be_made(tmp_path: Path) -> None:
    long = "blurry, " * 50
    rows = [{"method": "adaspa", "negative_prompt": long + end, "true_cfg_scale": 2.0} for end in ("one", "two")]
    folders = [row.folder for row in parse(rows=rows).rows]
    assert folders[0].startswith("adaspa-negative-prompt=blurry-blurry")
    for folder in folders:
        (tmp_path / folder).mkdir()


def test_rows_are_chosen_by_name_or_series() -> None:
    spec = parse(rows=[{"method": "full"}, {"method": "adaspa", "each": {"sparsity": [0.5, 0.8]}}])
    assert [row.name for row in spec.chosen("adaspa").rows] == ["adaspa sparsity=0.5", "adaspa sparsity=0.8"]
    assert [row.name for row in spec.chosen("adaspa sparsity=0.8, full").rows] == ["full", "adaspa sparsity=0.8"]
    with pytest.raises(ConfigError, match="unknown row 'adspa'; did you mean 'adaspa'"):
        spec.chosen("adspa")
    many = parse(rows=[{"method": "adaspa", "each": {"sparsity": [number / 100 for number in range(10, 60)]}}])
    with pytest.raises(ConfigError, match="unknown row 'none'") as caught:
        many.chosen("none")
    assert str(caught.value.hint).endswith("sparsity=0.2 and 39 more; adaspa bench --plan lists them")


def test_a_chosen_name_may_have_commas() -> None:
    spec = load_bench("search-steps", None)
    names = ["adaspa search_steps=10,30", "adaspa search_steps=10,20,30"]
    assert [row.name for row in spec.chosen(", ".join(["full", *names])).rows] == ["full", *names]
    with pytest.raises(ConfigError, match="unknown row '31'"):
        spec.chosen("adaspa search_steps=10,31")


def test_a_changed_setting_holds_for_all_rows_that_do_not_set_it_themselves() -> None:
    assert parse(run={"steps": 4}).changed({"steps": 8, "height": 32}).run == {"steps": 8, "height": 32}
    with pytest.raises(ConfigError, match="unknown key 'heigth' in --set"):
        parse().changed({"heigth": 3})


def test_a_sparsity_of_a_row_ends_the_ramp_of_all_rows(tmp_path: Path) -> None:
    bench = parse(
        run={"sparsity": {0: 0.5, 1: 0.9}},
        rows=[
            {"method": "adaspa"},
            {"method": "adaspa", "sparsity": 0.8},
            {"method": "adaspa", "each": {"sparsity": [0.7]}},
        ],
    )
    planned = plan_bench(bench, tmp_path, rerun_changed=True)
    ramps = [row.resolved.config.method.searching for row in planned]
    assert [(one.sparsity, one.sparsity_ramp) for one in ramps] == [(0.9, "0:0.5,1:0.9"), (0.8, None), (0.7, None)]


def test_all_rows_that_set_a_changed_setting_are_named_and_how_to_run_the_others() -> None:
    def refused(spec: BenchSpec, **settings: Any) -> tuple[str, str]:
        with pytest.raises(ConfigError) as caught:
            spec.changed(settings)
        return str(caught.value), str(caught.value.hint)

    own = "write a bench file of your own"
    assert refused(parse(), method="adaspa") == ("--set method: rows set it already: full, adaspa", own)
    steps = parse(rows=[{"name": "all of it"}, {"method": "full"}, {"steps": 3}, {"name": "two", "steps": 2}])
    message, hint = refused(steps, steps=4)
    assert message == "--set steps: rows set it already: adaspa steps=3, two"
    assert hint == "run only the others: --rows 'all of it,full'"
    full_size = load_bench("full-size", None)
    message, hint = refused(full_size, steps_per_phase=1)
    assert message == "--set steps_per_phase: a row sets it already: hunyuan plus 0.95 fp8 one step in three"
    assert hint == f"name only others in --rows, or {own}"
    assert full_size.chosen("hunyuan full").changed({"steps_per_phase": 1}).run["steps_per_phase"] == 1


def test_hints_about_a_row_name_keys_and_flags_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 'bad': max_error needs repair 'probes'") as caught:
        plan_bench(parse(rows=[{"name": "bad", "method": "adaspa", "max_error": 0.1}]), tmp_path, rerun_changed=True)
    assert caught.value.hint == "add repair: probes"
    assert by_keys("use --token-order raster, --device auto, --set lse=cached, or --method adaspa") == (
        "use token_order: raster, --device auto, --set lse=cached, or method: adaspa"
    )
    assert by_keys("drop --weights-dtype, or --debug") == "drop weights_dtype, or --debug"
    assert by_keys("use a --guidance-scale above 1, or --search-steps 10,30") == (
        "use a guidance_scale above 1, or search_steps: 10,30"
    )
    assert by_keys("choose smaller --search-steps or more --steps") == "choose smaller search_steps or more steps"
    assert by_keys(None) is None


@pytest.mark.parametrize("name", preset_names("bench"))
def test_presets_resolve(name: str) -> None:
    """Every row of every preset is a run that could be started, and its tables of the paper exist."""
    spec = load_bench(name, None)
    load_tables(spec.paper)
    assert spec.source == f"preset {name}"
    for row in spec.rows:
        resolve({**spec.run, **row.settings})


MAIN_METHODS = "full sparse-videogen minference frame-region adaspa-no-head-adaptive adaspa-no-lse-cache adaspa pab"


@pytest.mark.parametrize("name", ["main", "tiny-full"])
def test_the_main_table_has_the_papers_methods(name: str) -> None:
    assert [row.name for row in load_bench(name, None).rows] == [*MAIN_METHODS.split(), "adacache", "tomesd"]


def test_the_smoke_bench_has_all_methods() -> None:
    rows = {row.settings["method"] for row in load_bench("tiny-smoke", None).rows}
    assert rows == set(preset_names("methods")) - {"diffusers", "magcache-calibration"}


def test_the_large_bench_of_the_small_model_is_large() -> None:
    spec = load_bench("tiny-full", None)
    assert (len(set(spec.prompts)), spec.seeds) == (32, (0, 1, 2))


def figures(tables: list[str], chosen: set[str] = frozenset(), **flags: Any) -> dict[str, Any] | None:
    found = paper_figures(resolve(flags).flat(), set(chosen) | {"model", "method"}, load_tables(tables))
    content: dict[str, Any] | None = to_json(found)
    return content


def test_the_papers_figures_stand_beside_its_own_setting_alone() -> None:
    found = figures(["hunyuan"], model="hunyuan", method="adaspa")
    assert found is not None
    assert (found["psnr"], found["latency"], found["machine"]) == (29.07, 1810.23, "one A100-80GB")
    assert figures(["hunyuan"], model="hunyuan", method="adaspa", sparsity=0.9) is None
    assert figures(["hunyuan"], model="hunyuan", method="adaspa", frames=61) is None
    assert figures(["hunyuan"], model="hunyuan", method="adaspa", steps=20) is None
    assert figures(["hunyuan"], model="tiny", method="adaspa") is None
    assert figures(["hunyuan"], {"cache"}, model="hunyuan", method="adaspa") is None
    assert figures(["hunyuan"], {"random_weights", "layers"}, model="hunyuan", random_weights=True, layers=6) is None
    assert figures(["hunyuan"], {"device"}, model="hunyuan", method="full", device="cpu") is not None
    for whole, is_the_papers in ((50, True), (None, True), (100, False)):  # of 100 its steps are 5 and 15
        found = figures(["hunyuan"], {"search_steps_for"}, model="hunyuan", search_steps_for=whole)
        assert (found is not None) is is_the_papers


def test_beside_random_weights_stand_the_papers_times_alone() -> None:
    run = {"model": "hunyuan", "random_weights": True, "steps_per_phase": 2}
    assert figures(["hunyuan"], {"random_weights", "steps_per_phase"}, **run) == {
        "table": "main table, HunyuanVideo",
        "machine": "one A100-80GB",
        "latency": 1810.23,
        "speed_up": 1.78,
    }
    steps = {"search_steps": (10, 20, 30)}  # of which the paper reports the quality alone
    assert figures(["hunyuan-search-steps"], {"search_steps", "random_weights"}, **run, **steps) is None


def test_the_bench_at_full_size_has_the_papers_settings_at_the_models_own_sizes() -> None:
    spec = load_bench("full-size", None)
    tables, speed_ups, sizes = load_tables(spec.paper), {}, {}
    for row in spec.rows:
        flags = {**spec.run, **row.settings}
        flat = resolve(flags).flat()
        found = paper_figures(flat, set(flags), tables)
        speed_ups[row.name] = found and found.speed_up
        sizes[flat["model"]] = [flat[key] for key in ("height", "width", "frames", "steps")]
        assert (flat["random_weights"], flat["layers"]) == (True, None)
        assert flat["steps_per_phase"] == (2 if flat["cache"] == "none" else None)
    assert {name: speed_up for name, speed_up in speed_ups.items() if "plus" not in name and "fp8" not in name} == {
        "hunyuan diffusers": None,
        "hunyuan full": 1,
        "hunyuan adaspa 0.8": 1.78,
        "hunyuan adaspa 0.9": 2.79,
        "fasthunyuan diffusers": None,
        "fasthunyuan full": 1,
        "fasthunyuan adaspa 0.85": 1.56,
        "cogvideox diffusers": None,
        "cogvideox full": 1,
        "cogvideox adaspa 0.8": 1.66,
    }
    assert sizes == {
        "hunyuan": [720, 1280, 129, 50],
        "fasthunyuan": [720, 1280, 125, 6],
        "cogvideox": [768, 1360, 161, 50],
    }


def test_every_figure_of_the_papers_main_table_can_be_met() -> None:
    for model, psnr in (("hunyuan", 29.07), ("cogvideox", 23.25), ("fasthunyuan", 14.49)):
        found = figures([model], model=model, method="adaspa")
        assert found is not None
        assert found["psnr"] == psnr
    steps = figures(["hunyuan-search-steps"], {"search_steps"}, model="hunyuan", search_steps=(10, 20, 30))
    assert steps is not None
    assert (steps["psnr"], "latency" in steps) == (28.93, False)
