"""Benches small enough for tests: a saved random-weight pipeline, two methods, runs of a fraction of a second."""

from pathlib import Path
from typing import Any

import yaml

from adaspa_cli.bench.paper import load_tables
from adaspa_cli.bench.plan import plan_bench
from adaspa_cli.bench.runner import run_bench
from adaspa_cli.bench.spec import BenchSpec, load_bench
from adaspa_cli.bench.write import write_bench
from tests.pipelines import Listener, small_run

PROMPTS = ["a red circle moves left", "a green square"]


def settings(model: Path, **changed: Any) -> dict[str, Any]:
    """What all rows run with."""
    small = small_run(model, Path("unused"), **changed)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in small.items() if key not in ("prompt", "out")}


def bench_file(folder: Path, model: Path, **changed: Any) -> Path:
    """A bench of full and adaspa with two prompts, as a file."""
    content = {
        "title": "A <small> bench",
        "run": settings(model),
        "prompts": PROMPTS,
        "warmup_steps": 0,
        "rows": [{"method": "full"}, {"method": "adaspa"}],
    }
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(content | changed), encoding="utf-8")
    return path


def small_bench(folder: Path, model: Path, **changed: Any) -> BenchSpec:
    """The same, read."""
    return load_bench(None, bench_file(folder, model, **changed))


def make(spec: BenchSpec, out: Path, listener: Any = None, **options: Any) -> dict[str, Any]:
    """Make a bench's runs and tables; returns what ``bench.json`` holds."""
    planned = plan_bench(spec, out, **options)
    run_bench(planned, listener or Listener(), warmup_steps=spec.warmup_steps)
    return write_bench(spec, planned, out, load_tables(spec.paper), lambda _note: None).as_json()


def rows(bench: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by name."""
    return {row["name"]: row for row in bench["rows"]}
