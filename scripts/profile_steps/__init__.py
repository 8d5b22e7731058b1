"""Where the time of a denoising step goes, by kind of step, on a GPU: ``python -m scripts.profile_steps --help``."""
