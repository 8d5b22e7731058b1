"""One run: the step clock, the attention engine, timing, prompts, outputs."""
