"""One module for each model family of diffusers."""
