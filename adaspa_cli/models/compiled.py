"""``--compile``: the blocks of a transformer through ``torch.compile``, all but their attention.

What is compiled of a block is what the compiler can fuse: norms, modulation, gates, activations and the elementwise
work round the matrix products of the feed-forward. Attention stays one eager call, and with it one graph break in each
block: the projections and the sparse kernels in it leave nothing to fuse, and a graph that saw the layer's number, the
policy or a mask would be recompiled for each of them.

Blocks of a kind share their graphs, because these take weights as inputs. There are a few of each kind, because tokens
come in a few memory layouts; another size of video makes one more set, which then serves all sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, cast

import torch

from adaspa_cli.errors import BackendError

P = ParamSpec("P")
T = TypeVar("T")


def eager(function: Callable[P, T]) -> Callable[P, T]:
    """Keep a function, and all that it calls, out of compiled blocks; ``inspect`` sees its own signature."""
    return cast(Callable[P, T], torch.compiler.disable(function))  # type: ignore[no-untyped-call]


def compile_blocks(blocks: Iterable[Any], device: torch.device, *, backend: str = "inductor") -> None:
    """Compile each block of a transformer in place; it happens when they are first called.

    A block's ``forward`` is replaced, and not the call of the module, so that what hooks and caches put round it runs
    outside of the graphs: they are different objects for each layer, and would be compiled once for each.

    Args:
        blocks: on their device, without processors, hooks or caches.
        device: that the blocks run on.
        backend: of torch.compile.

    Raises:
        BackendError: there is no C++ compiler, and the blocks run on a CPU.
    """
    if backend == "inductor":
        check_compiler(device)
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=backend)


def check_compiler(device: torch.device) -> None:
    """Raise BackendError where blocks run on a CPU, and there is no C++ compiler."""
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise BackendError(
            "--compile needs a C++ compiler to run on a CPU, and found none", hint="install g++, or drop --compile"
        ) from error
