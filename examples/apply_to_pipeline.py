"""Attach a method to a diffusers pipeline, make a video, and detach it.

Runs on a CPU in seconds, on the bundled model at a small size: python examples/apply_to_pipeline.py
For a real model, load the pipeline as always, and attach in the same way:

    pipe = HunyuanVideoPipeline.from_pretrained("hunyuanvideo-community/HunyuanVideo", dtype=torch.bfloat16)
"""

from importlib.resources import files

import torch
from diffusers import HunyuanVideoPipeline

import adaspa_cli


def make_video(pipe: HunyuanVideoPipeline) -> torch.Tensor:
    """Frames [F, 3, H, W] in [0, 1]; the same noise each time."""
    call = {"prompt": "a red circle moves left on a blue background", "height": 96, "width": 96, "num_frames": 9}
    return pipe(**call, num_inference_steps=4, generator=torch.manual_seed(0), output_type="pt").frames[0]


def main() -> None:
    pipe = HunyuanVideoPipeline.from_pretrained(str(files("adaspa_cli") / "assets" / "tiny"))
    pipe.set_progress_bar_config(disable=True)
    dense = make_video(pipe)

    with adaspa_cli.apply(pipe, method="adaspa-plus", sparsity=0.5) as handle:  # or handle.remove() at the end
        sparse = make_video(pipe)

    calls = handle.engine.calls  # of the last run, one for each layer and step: what it did, and its own density
    psnr = -10 * torch.log10((sparse - dense).square().mean())
    print(f"{len(calls)} attention calls, {handle.density:.0%} of the blocks computed")
    print(f"estimated attention error {handle.error_estimate:.1%}")
    print(f"PSNR against the dense video: {psnr:.1f} dB")

    restored = make_video(pipe)  # the pipeline is as it was
    print(f"detached, the pipeline makes the dense video again: {torch.equal(restored, dense)}")


if __name__ == "__main__":
    main()
