"""Several processes that make one video together: its tokens, heads and guidance branches spread over them.

Each process runs the same program. Between attention calls it has a part of the video's tokens and all of the text's;
within them all tokens of a part of the heads (DeepSpeed-Ulysses, arXiv 2309.14509). So block masks are those of one
process, and only attention, the ends of the transformer and the choice of masks across heads exchange anything.

``place``, ``refuse`` and ``launch`` import nothing heavy.
"""
