"""Reports and benches as small as they can be, as JSON of format 1."""

from typing import Any


def small_report(**changed: Any) -> dict[str, Any]:
    """What must be in a report of format 1, as JSON; the oldest reports hold little more."""
    seconds = {"total": 4.0, "text_encoding": 0.5, "denoising": 3, "attention": 1.0, "decoding": 0.2, "writing": 0.1}
    return {
        "format": 1,
        "kind": "adaspa latency report",
        "fingerprint": "f",
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"adaspa": "0", "python": "3", "torch": "2", "diffusers": "0"},
        "machine": {"device": "cpu", "cpu": "one", "cores": 1, "threads": 1, "system": "Linux x86_64"},
        "model": {"name": "t", "pipeline": "P", "dtype": "float32", "layers": 1, "heads": 2, "head_dim": 64},
        "settings": {"method": {"value": "full", "origin": "flag"}, "algorithm": {"value": "full", "origin": ""}},
        "search_steps": {"asked": [], "planned": [], "done": []},
        "prompt": "a circle",
        "seed": 0,
        "video": {"file": "x.mp4", "frames": 5, "height": 32, "width": 48, "fps": 8},
        "seconds": seconds,
        "density": 1.0,
        "steps": [{"step": 0, "phase": "dense", "seconds": 3.0, "attention": 1.0, "density": 1.0}],
        "searches": [],
        "peak_memory": {"process_bytes": 1},
    } | changed


def small_quality(psnr: float) -> dict[str, Any]:
    """What was measured of a video."""
    whole = {"format": 1, "kind": "adaspa quality", "fingerprint": "f", "reference_fingerprint": "g", "versions": {}}
    return {**whole, "report": "x", "reference_report": "y", "metrics": {"psnr": {"value": psnr}}}


def small_row(**changed: Any) -> dict[str, Any]:
    """A row of a bench before its first run, as the oldest benches hold it."""
    none = {"missing": "no run is complete"}
    nothing = ("random_weights", "reference", "diffusers_row", "speed_up_over_diffusers", "estimated", "density")
    nothing += ("skipped", "merged", "peak_gpu_bytes", "attention_backend", "paper")
    return {
        "name": "full",
        "series": "full",
        "settings": {"algorithm": "full", "random_weights": False, "compile": False, "fps": 8},
        "differs_in": ["method"],
        "planned": 1,
        "runs": [],
        "failures": [],
        "quality": dict.fromkeys(("psnr", "ssim", "lpips", "vbench"), none),
        "identical_frames": 0,
        "seconds": dict.fromkeys(("latency", "text_encoding", "denoising", "attention", "decoding"), none),
        "speed_up": dict.fromkeys(("latency", "denoising", "attention"), none),
        "phases": {},
        **dict.fromkeys(nothing),
    } | changed


def small_bench(**changed: Any) -> dict[str, Any]:
    """A bench of one row."""
    return {
        "format": 1,
        "kind": "adaspa bench",
        "created": "2026-01-01T00:00:00+00:00",
        "title": "a bench",
        "about": "",
        "source": "x.yaml",
        "prompts": ["a circle"],
        "seeds": [0],
        "machines": [small_report()["machine"]],
        "versions": [{"adaspa": "0"}],
        "times": True,
        "random_weights": None,
        "estimated": None,
        "notes": [],
        "plots": [{"x": "sparsity", "y": "psnr"}],
        "rows": [small_row()],
    } | changed
