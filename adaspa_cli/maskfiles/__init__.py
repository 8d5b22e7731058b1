"""Mask files: masks of a whole model in one ``.safetensors`` file. docs/mask-files.md has the format."""

from typing import TYPE_CHECKING

from adaspa_cli.on_demand import on_demand

if TYPE_CHECKING:
    from adaspa_cli.maskfiles.description import Description, Entry, MethodFacts, ModelFacts
    from adaspa_cli.maskfiles.reader import MaskFile
    from adaspa_cli.maskfiles.writer import write_mask_file, write_part

__all__ = ["Description", "Entry", "MaskFile", "MethodFacts", "ModelFacts", "write_mask_file", "write_part"]

__getattr__ = on_demand(  # description, header and check import nothing heavy
    __name__,
    {
        "description": ("Description", "Entry", "MethodFacts", "ModelFacts"),
        "reader": ("MaskFile",),
        "writer": ("write_mask_file", "write_part"),
    },
)
