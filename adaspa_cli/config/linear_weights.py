"""How many weights ``--linear fp8`` puts into FP8, by the configuration of a transformer. Imports nothing heavy.

The heavy part of a family says which layers these are (:class:`adaspa_cli.models.linears.Linears`); tests hold both
together. C: channels of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]  # of a transformer, as diffusers stores it; what it lacks has the defaults of diffusers


def hunyuan_video_weights(transformer: Config) -> int:
    """Of blocks with a stream each for video and text: q, k, v, out and the feed-forward. Of single ones: q, k and v,
    the first layer of the feed-forward, and one that takes its output beside attention's."""
    channels = _channels(transformer)
    inner = int(channels * transformer.get("mlp_ratio", 4.0))
    dual = 2 * (4 * channels**2 + 2 * channels * inner)
    single = 4 * channels**2 + 2 * channels * inner
    return int(transformer.get("num_layers", 0)) * dual + int(transformer.get("num_single_layers", 0)) * single


def hunyuan_video15_weights(transformer: Config) -> int:
    """Those of HunyuanVideo's dual blocks."""
    return hunyuan_video_weights({**transformer, "num_single_layers": 0})


def cogvideox_weights(transformer: Config) -> int:
    """q, k, v, out and the feed-forward."""
    channels = _channels(transformer)
    return int(transformer.get("num_layers", 0)) * 12 * channels**2


def wan_weights(transformer: Config) -> int:
    """q, k, v and out of self-attention and of cross-attention, there also k and v of a picture's tokens, and the
    feed-forward."""
    channels = _channels(transformer)
    picture = 2 * channels * (transformer.get("added_kv_proj_dim") or 0)
    block: int = 8 * channels**2 + picture + 2 * channels * transformer.get("ffn_dim", 13824)
    return int(transformer.get("num_layers", 0)) * block


def _channels(transformer: Config) -> int:
    """0 where the configuration leaves them to diffusers: then nothing is counted."""
    return int(transformer.get("num_attention_heads") or 0) * int(transformer.get("attention_head_dim") or 0)
