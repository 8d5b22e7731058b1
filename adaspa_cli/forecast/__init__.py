"""The forecast of a run: its steps, its attention work, and estimates of its memory and time."""
