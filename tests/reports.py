"""A latency report as small as one can be."""

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
