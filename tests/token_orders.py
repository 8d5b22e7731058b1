"""The Hilbert order of whole sequences, which the library needs of video tokens alone."""

import torch

from adaspa_cli.attention import TokenLayout
from adaspa_cli.masks.token_order import TokenOrder, video_order


def sequence_order(layout: TokenLayout) -> TokenOrder:
    """Of a sequence of L tokens: text stays where it is, first or last."""
    video = video_order(layout)
    start, stop = layout.video_start, layout.video_start + layout.video_tokens
    before, after = (torch.arange(*ends) for ends in ((0, start), (stop, layout.tokens)))
    return TokenOrder(*(torch.cat([before, x + start, after]) for x in (video.forward, video.backward)))
