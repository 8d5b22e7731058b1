"""Reports: the times of a run, and the work it left out."""
