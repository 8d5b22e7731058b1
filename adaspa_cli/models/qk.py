"""Queries and keys between projection and attention: norm of each head, rotary embedding, place in the joint sequence.

On a GPU one kernel does it all in one pass; what it does not know, and everything on a CPU, PyTorch does.

Shapes: B batch, L tokens, N tokens with a position, H heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Norm = Any  # a module over the last dimension

_CPU_TOKENS = 1024  # of a piece that is normalised and rotated at once


@dataclass(frozen=True)
class Rotation:
    """Rotary position embedding of N tokens in a row; the others keep their values.

    Attributes:
        cosines, sines: float32 [N, D / 2], of the angle by which a pair of neighbouring channels turns.
        first: the first token that has a position.
    """

    cosines: Tensor
    sines: Tensor
    first: int = 0

    @classmethod
    def of(cls, rotary: tuple[Tensor, Tensor], device: torch.device, first: int = 0) -> Rotation:
        """From diffusers' tables [N, D], which hold the value of a pair once for each of its channels."""
        cosines, sines = (x.to(device, torch.float32)[:, ::2].contiguous() for x in rotary)
        return cls(cosines, sines, first)


def prepare(norm: Norm | None, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
    """Normalise x [B, L, H, D], rotate it, and write it to ``out`` of the same shape, which may be x."""
    arguments = kernel_arguments(norm, x)
    if arguments is not None:
        import adaspa_kernels

        tables, first = (None, 0) if rotation is None else ((rotation.cosines, rotation.sines), rotation.first)
        adaspa_kernels.norm_rope(x, out, rotation=tables, first=first, **arguments)
        return
    # Small pieces on a CPU: their float32 copies stay in the cache, and fresh memory costs more than the arithmetic.
    step = _CPU_TOKENS if x.device.type == "cpu" else x.shape[1]
    for start in range(0, x.shape[1], step):
        piece = x[:, start : start + step]
        normal = piece if norm is None else norm(piece)
        out[:, start : start + step] = normal if rotation is None else _rotate(normal, rotation, start)


def project_joint(attn: Any, joint: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
    """Project all tokens [B, L, C] by the weights of one of diffusers' attention modules: q, k, v [B, L, H, D], of
    which q and k are prepared."""
    projected = (attn.to_q(joint), attn.to_k(joint), attn.to_v(joint))
    q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in projected)
    prepare(attn.norm_q, q, rotation, out=q)
    prepare(attn.norm_k, k, rotation, out=k)
    return q, k, v


def _rotate(x: Tensor, rotation: Rotation, start: int) -> Tensor:
    """Rotate x [B, L, H, D], of which the first token is token ``start`` of the sequence.

    A pair of neighbouring channels is a complex number, and its rotation one product: a fifth of the passes of
    diffusers' ``apply_rotary_emb``, which it equals but for float32 rounding, and no concatenation.
    """
    place = rotation.first - start
    here = slice(max(0, place), max(0, place + len(rotation.cosines)))  # tokens of x that turn
    there = slice(here.start - place, min(len(rotation.cosines), x.shape[1] - place))  # their positions
    if there.start >= there.stop:
        return x
    turned = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    pairs = torch.view_as_complex(turned.view(*x.shape[:-1], -1, 2))
    pairs[:, here] *= torch.complex(rotation.cosines[there], rotation.sines[there])[:, None]
    return turned.to(x.dtype)


def kernel_arguments(norm: Norm | None, x: Tensor, *, on: str = "cuda") -> dict[str, Any] | None:
    """The kernel's arguments for a norm over D; None where it cannot stand for PyTorch, as elsewhere than ``on``.

    A norm with a hook, or whose weights are elsewhere until it is called (offloading), is called.
    """
    from diffusers.models.normalization import RMSNorm

    import adaspa_kernels

    head_dim = x.shape[-1]
    if x.device.type != on or adaspa_kernels.unavailable(x.device) or head_dim & (head_dim - 1) or x.stride(-1) != 1:
        return None
    if norm is None:
        return {}
    kind = {RMSNorm: "rms", torch.nn.LayerNorm: "layer"}.get(type(norm))
    if kind is None or norm._forward_hooks or norm._forward_pre_hooks:
        return None
    vectors = {"weight": norm.weight, "bias": norm.bias}
    if any(vector is not None and vector.device != x.device for vector in vectors.values()):
        return None
    return {"norm": kind, "eps": norm.eps, **vectors}
