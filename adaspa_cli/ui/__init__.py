"""``adaspa ui``: a page on this machine that makes videos."""
