"""What a run will take, before it runs: its steps, its attention work, and estimates of its memory and its time."""
