"""adaspa: faster videos from diffusion transformers, through block-sparse attention with an online mask search.

``handle = adaspa_cli.apply(pipe, sparsity=0.8)`` accelerates a pipeline of diffusers; ``handle.remove()`` undoes it.
"""

from __future__ import annotations

from adaspa_cli.version import __version__

TYPE_CHECKING = False  # not imported: until __main__ has taken over Ctrl-C, each import is time without it
if TYPE_CHECKING:
    from typing import Any

    from adaspa_cli.sampling.handle import Handle, apply

__all__ = ["Handle", "__version__", "apply"]


def __getattr__(name: str) -> Any:
    """Import torch and diffusers only when they are needed: `adaspa --help` must not wait for them."""
    if name in ("Handle", "apply"):
        from adaspa_cli.sampling import handle

        return getattr(handle, name)
    raise AttributeError(f"module 'adaspa_cli' has no attribute '{name}'")
