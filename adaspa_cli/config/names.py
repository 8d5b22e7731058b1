"""Names that settings may take, where they are not those of methods, caches or mergings. Imports nothing of ours."""

from typing import Literal

BACKENDS = ("auto", "triton", "cpu", "reference")
OFFLOADS = ("none", "model", "group")
DTYPES = ("auto", "bfloat16", "float16", "float32")
LINEARS = ("model", "fp8")
FP8_OFFLOADS = ("none", "model")  # that linear layers in FP8 go with
WEIGHTS_DTYPES = ("model", "fp8", "int8", "nf4")
BUDGETS = ("row", "head-adaptive", "layer")
SELECTIONS = ("mass", "output-error")
REMAINDERS = ("drop", "pooled")
REPAIRS = ("none", "probes")
FALLBACKS = ("search", "warn")

OrderName = Literal["raster", "hilbert"]
TOKEN_ORDERS: tuple[OrderName, ...] = ("raster", "hilbert")
