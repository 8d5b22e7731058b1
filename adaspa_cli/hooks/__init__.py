"""What attaches to a pipeline and can be removed: the step clock, time spans, and the timeline of a run."""
