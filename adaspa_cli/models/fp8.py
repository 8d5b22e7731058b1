"""``--linear fp8``: linear layers of a transformer's blocks put into FP8, and taken out again.

Only attention's and the feed-forward's: modulation layers work on one row, and what is outside the blocks stays as
it is. A layer that other code replaced or hooked (LoRA, offloading, other quantisation) is left alone, and the report
counts it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from adaspa_cli.errors import BackendError, RunError
from adaspa_cli.models.family import Family
from adaspa_cli.models.fp8_linear import ALIGNMENT, Fp8Linear, SharedInput, check_fp8
from adaspa_cli.models.linears import Gelu


class Fp8Linears:
    """FP8 layers in the place of a pipeline's own, until :meth:`remove` puts these back.

    The original weights stay where they are, so that removing costs nothing and restores every bit: FP8 weights come on
    top, one byte a weight.

    Attributes:
        layers: that multiply in FP8.
        of: linear layers of the blocks that might.
        weight_bytes: of the FP8 weights.
    """

    def __init__(self, family: Family, pipe: Any, *, emulate: bool = False) -> None:
        """
        Args:
            family: of the pipeline.
            pipe: on its device.
            emulate: multiply with PyTorch in float32, for comparisons; any device and dtype.

        Raises:
            BackendError: the device has no FP8, or the model is not bfloat16.
            RunError: weights are elsewhere than the run, or no layer can multiply in FP8.
        """
        self._emulate = emulate
        self._device = pipe._execution_device
        if not emulate:
            check_fp8(self._device)
            _check_dtype(family.shape(pipe).dtype)
        self._replaced: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
        self.layers = self.of = self.weight_bytes = 0
        try:
            for transformer in family.transformers(pipe):
                for block in family.blocks(transformer):
                    self._replace_in(block, family)
            if not self.of:
                raise RunError(f"linear 'fp8' is not available for {type(pipe).__name__}", hint="use --linear model")
            if not self.layers:
                raise RunError(
                    "linear 'fp8': no linear layer of the blocks is unmodified",
                    hint="fuse or unload LoRAs first, or use --linear model",
                )
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Put the original layers back, where ours still stand. May be called twice."""
        while self._replaced:
            parent, name, original, new = self._replaced.pop()
            if getattr(parent, name) is new:
                setattr(parent, name, original)

    def __enter__(self) -> Fp8Linears:
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()

    def _replace_in(self, block: Any, family: Family) -> None:
        linears = family.linears
        self.of += sum(_find(block, path) is not None for path in linears.paths())
        for group in linears.sharing:
            shared = SharedInput()
            for path in group:
                self._convert(block, path, shared=shared)
        for path in linears.single:
            self._convert(block, path)
        for gelu in linears.gelus:
            self._replace_gelu(block, gelu)

    def _replace_gelu(self, block: Any, gelu: Gelu) -> None:
        """Both layers, with the GELU as a part of the second one where that is a GELU that it can be."""
        module, before, after = (_find(block, path) for path in (gelu.path, gelu.before, gelu.after))
        inside = gelu.before.startswith(f"{gelu.path}.")
        movable = _is_tanh_gelu(module) and self._fits(after) and (not inside or self._fits(before))
        if not movable:
            self._convert(block, gelu.before)
            self._convert(block, gelu.after)
            return
        first = after.in_features - before.out_features
        if inside:
            self._put(block, gelu.path, self._made(before))
        else:
            self._convert(block, gelu.before)
            self._put(block, gelu.path, nn.Identity())
        self._put(block, gelu.after, self._made(after, gelu_from=first))

    def _convert(self, block: Any, path: str, shared: SharedInput | None = None) -> None:
        layer = _find(block, path)
        if self._fits(layer):
            self._put(block, path, self._made(layer, shared=shared))

    def _made(self, layer: nn.Linear, **options: Any) -> Fp8Linear:
        made = Fp8Linear(layer, emulate=self._emulate, **options)
        self.layers += 1
        self.weight_bytes += made.weight.numel()
        return made

    def _put(self, block: Any, path: str, new: nn.Module) -> None:
        above, _, name = path.rpartition(".")
        parent = _find(block, above) if above else block
        self._replaced.append((parent, name, getattr(parent, name), new))
        setattr(parent, name, new)

    def _fits(self, layer: Any) -> bool:
        """Whether a layer is as diffusers made it, and FP8 products take its sizes.

        Raises:
            RunError: its weights are not where the run is.
        """
        if type(layer) is not nn.Linear or _is_hooked(layer) or type(layer.weight) is not nn.Parameter:
            return False
        if layer.weight.device != self._device:
            raise RunError(
                f"linear 'fp8' needs the weights on {self._device}, and some are on {layer.weight.device}",
                hint="load the pipeline without offloading",
            )
        aligned = layer.in_features % ALIGNMENT == 0 and layer.out_features % ALIGNMENT == 0
        return aligned and layer.weight.dtype in (torch.bfloat16, torch.float16, torch.float32)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype != torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        raise BackendError(f"linear 'fp8' gives bfloat16, and the model is in {name}", hint="use --dtype bfloat16")


def _find(block: Any, path: str) -> Any:
    """The module at a path in a block; None where there is none."""
    for name in path.split("."):
        block = getattr(block, name, None)
    return block


def _is_hooked(module: nn.Module) -> bool:
    """Hooks of PyTorch, or a ``forward`` of the instance's own, as accelerate and diffusers give it."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _is_tanh_gelu(module: Any) -> bool:
    from diffusers.models.activations import GELU

    return type(module) in (nn.GELU, GELU) and module.approximate == "tanh" and not _is_hooked(module)
