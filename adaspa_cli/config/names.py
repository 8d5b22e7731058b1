"""Names that settings may take. Free of heavy imports, so that a wrong name is refused in an instant."""

from typing import Literal

from adaspa_cli.config.caches import CACHES
from adaspa_cli.config.merging import MERGES
from adaspa_cli.config.methods import DenseConfig, names_of

BACKENDS = ("auto", "triton", "cpu", "reference")
OFFLOADS = ("none", "model", "group")
DTYPES = ("auto", "bfloat16", "float16", "float32")
LINEARS = ("model", "fp8")
OrderName = Literal["raster", "hilbert"]
TOKEN_ORDERS: tuple[OrderName, ...] = ("raster", "hilbert")
ALGORITHMS = names_of()
DENSE = names_of(DenseConfig)

__all__ = [
    "ALGORITHMS",
    "BACKENDS",
    "CACHES",
    "DENSE",
    "DTYPES",
    "LINEARS",
    "MERGES",
    "OFFLOADS",
    "TOKEN_ORDERS",
    "OrderName",
]
