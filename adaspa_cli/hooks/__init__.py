"""What attaches to a pipeline and comes off again: the step clock, time spans, and where a run's time goes."""
