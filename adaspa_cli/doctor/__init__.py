"""``adaspa doctor``: what this machine and its installation can do, and how to mend what they cannot."""
