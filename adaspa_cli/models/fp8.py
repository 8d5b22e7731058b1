"""``--linear fp8``: linear layers of a transformer's blocks put into FP8, and taken out again.

Only attention's and the feed-forward's: modulation layers work on one row, and what is outside the blocks stays as
it is. A layer that other code replaced or hooked (LoRA, offloading, other quantisation) is left alone, and the report
counts it.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from adaspa_cli.config.devices import machine_memory
from adaspa_cli.errors import BackendError, RunError
from adaspa_cli.models.family import Family
from adaspa_cli.models.fp8_linear import ALIGNMENT, Fp8Linear, SharedInput, check_fp8
from adaspa_cli.models.linears import Gelu

_logger = logging.getLogger(__name__)

_KEPT_FREE = 1 / 8  # of main memory


class Fp8Linears:
    """FP8 layers in the place of a pipeline's own, until :meth:`remove` puts these back.

    The original weights are in main memory, so that the device holds a byte a weight, and removing restores every bit.
    Those that are there already (:func:`left_behind`, offloading of whole models) stay there, and are copied to the
    device one by one to be quantised. Others are parked there, one by one as well, and return. Those that share memory
    with another part of the pipeline (tied layers, views) stay on the device: they could not be freed there, and would
    share it no longer. So do those that main memory has no room for: an eighth of it is left free, and the log says
    what stays.

    FP8 weights are put where the rest of their transformer is. If that is offloaded as a whole, they move with it.

    Attributes:
        layers: that multiply in FP8.
        of: linear layers of the blocks that might.
        weight_bytes: of the FP8 weights.
    """

    def __init__(self, family: Family, pipe: Any, *, emulate: bool = False) -> None:
        """
        Args:
            family: of the pipeline.
            pipe: on its device, apart from weights in main memory that :func:`left_behind` left there; or offloaded in
                whole models.
            emulate: multiply with PyTorch in float32, for comparisons; any device and dtype.

        Raises:
            BackendError: the device has no FP8, or the model is not bfloat16.
            RunError: weights are elsewhere than the run, or no layer can multiply in FP8.
        """
        self._emulate = emulate
        self._device = self._held = pipe._execution_device
        if not emulate:
            check_fp8(self._device)
            _check_dtype(family.shape(pipe).dtype)
        self._replaced: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
        self._made: list[Fp8Linear] = []
        self._offloaded: list[nn.Module] = []
        self._users = _users_of_storages(pipe)
        self.layers = self.of = self.weight_bytes = self._without_room = 0
        try:
            for transformer in family.transformers(pipe):
                self._held = self._place_of(transformer)
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
        if self._without_room:
            _logger.warning(
                "main memory has no room for %.1f GB of the weights that FP8 replaces: they stay on the GPU",
                self._without_room / 1e9,
            )

    def remove(self) -> None:
        """Put the original layers back, where ours still stand, and parked weights to where the FP8 ones are by now.

        Weights that were in main memory before stay there; what is offloaded returns there as a whole. May be called
        twice. Where the device has no room for parked weights, torch.OutOfMemoryError is raised, and another call goes
        on.
        """
        while self._replaced:
            parent, name, original, new = self._replaced.pop()
            if getattr(parent, name) is new:
                setattr(parent, name, original)
        while self._made:
            self._made[-1].unpark()
            self._made.pop()
        while self._offloaded:
            self._offloaded.pop().to("cpu")

    def __enter__(self) -> Fp8Linears:
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()

    def _place_of(self, transformer: Any) -> torch.device:
        """Where a transformer's FP8 weights are put.

        Raises:
            RunError: the transformer is not where the run is, and nothing brings it there.
        """
        held: torch.device = transformer.device
        if held != self._device:
            if held.type != "cpu" or not hasattr(transformer, "_hf_hook"):  # by which accelerate moves all of it
                raise self._elsewhere(held)
            self._offloaded.append(transformer)
        return held

    def _elsewhere(self, device: torch.device) -> RunError:
        return RunError(
            f"linear 'fp8' needs the weights on {self._device}, and some are on {device}",
            hint="load the pipeline without offloading, or with pipe.enable_model_cpu_offload()",
        )

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
            name = gelu.before.removeprefix(f"{gelu.path}.")
            self._put(block, gelu.path, nn.Sequential(OrderedDict({name: self._make(before)})))
        else:
            self._convert(block, gelu.before)
            self._put(block, gelu.path, nn.Identity())
        self._put(block, gelu.after, self._make(after, gelu_from=first))

    def _convert(self, block: Any, path: str, shared: SharedInput | None = None) -> None:
        layer = _find(block, path)
        if self._fits(layer):
            self._put(block, path, self._make(layer, shared=shared))

    def _make(self, layer: nn.Linear, **options: Any) -> Fp8Linear:
        made = Fp8Linear(layer, emulate=self._emulate, device=self._device, held=self._held, **options)
        self._made.append(made)
        if self._users[_storage(layer.weight)] == 1 and not made.park(room()):
            self._without_room += layer.weight.nbytes
        self.layers += 1
        self.weight_bytes += made.weight.numel()
        return made

    def _put(self, block: Any, path: str, new: nn.Module) -> None:
        above, _, name = path.rpartition(".")
        parent = _find(block, above) if above else block
        self._replaced.append((parent, name, getattr(parent, name), new))
        setattr(parent, name, new)

    def _fits(self, layer: Any) -> bool:
        """Whether a layer is replaced.

        Raises:
            RunError: its weights are not where the run is, and not in main memory apart from the rest, nor offloaded.
        """
        if not _is_fit(layer):
            return False
        held = layer.weight.device
        apart = held.type == "cpu" and (layer.bias is None or layer.bias.device == self._held)
        if held != self._device and not apart:
            raise self._elsewhere(held)
        return True


@contextmanager
def left_behind(family: Family, pipe: Any) -> Iterator[None]:
    """Within it a pipeline moves without the weights that FP8 takes, but for those that others share.

    Left in main memory, they need no room on the device: :class:`Fp8Linears` quantises them from there. Nothing else
    can run such a pipeline.
    """
    users = _users_of_storages(pipe)
    blocks = (block for transformer in family.transformers(pipe) for block in family.blocks(transformer))
    layers = [layer for block in blocks for layer in map(partial(_find, block), family.linears.paths())]
    weights = {layer: layer.weight for layer in layers if _is_fit(layer) and users[_storage(layer.weight)] == 1}
    for layer in weights:
        layer._parameters["weight"] = None
    try:
        yield
    finally:
        for layer, weight in weights.items():
            layer._parameters["weight"] = weight


def _is_fit(layer: Any) -> bool:
    """Whether a layer is as diffusers made it, and FP8 products take its sizes."""
    if type(layer) is not nn.Linear or _is_hooked(layer) or type(layer.weight) is not nn.Parameter:
        return False
    aligned = layer.in_features % ALIGNMENT == 0 and layer.out_features % ALIGNMENT == 0
    return aligned and layer.weight.dtype in (torch.bfloat16, torch.float16, torch.float32)


def room() -> float:
    """Bytes of main memory that weights may take; it is asked anew for each, as other processes take some as well."""
    free, memory = machine_memory()
    return float("inf") if free is None or memory is None else free - _KEPT_FREE * memory


def _users_of_storages(pipe: Any) -> Counter[int]:
    """How many places in a pipeline's modules have a tensor in each storage; one module in two places counts twice."""
    modules = (
        module
        for part in vars(pipe).values()
        if isinstance(part, nn.Module)
        for _, module in part.named_modules(remove_duplicate=False)
    )
    tensors = (tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values()))
    return Counter(_storage(tensor) for tensor in tensors if type(tensor) in (nn.Parameter, torch.Tensor))


def _storage(tensor: torch.Tensor) -> int:
    """Identifies a tensor's storage while it is there."""
    return int(tensor.untyped_storage()._cdata)


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
