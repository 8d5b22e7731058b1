"""Names that settings may take. Free of heavy imports, so that a wrong name is refused in an instant."""

BACKENDS = ("auto", "triton", "cpu", "reference")
OFFLOADS = ("none", "model", "group")
ALGORITHMS = ("adaspa", "full", "diffusers", "sparse-videogen", "minference", "frame-region")
DENSE = ("full", "diffusers")  # they attend densely at every step: by our best dense path, or as diffusers does
ESTIMATING = ("sparse-videogen", "minference")  # they find a mask anew in every call after warm-up
SEARCHING = ("adaspa", "frame-region")  # they search masks in exact block sums, which a mask file can hold
DTYPES = ("auto", "bfloat16", "float16", "float32")
CACHES = ("none", "pab", "adacache", "first-block", "magcache", "taylorseer")
ATTENTION_CACHES = ("pab", "taylorseer")  # they skip attention inside of blocks, the others whole blocks
MERGES = ("none", "tomesd")
BUDGETS = ("row", "head-adaptive", "layer")
