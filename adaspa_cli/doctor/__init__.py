"""``adaspa doctor``: what this machine and its installation can do, and how to fix what they cannot."""
