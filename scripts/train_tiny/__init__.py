"""Trains, judges and exports the bundled tiny text-to-video model: ``python -m scripts.train_tiny --help``."""
