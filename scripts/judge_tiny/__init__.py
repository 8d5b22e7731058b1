"""Judges the bundled model, with its captions and clips of such scenes: ``python -m scripts.judge_tiny --help``."""
