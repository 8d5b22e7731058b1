"""Adapters for the pipelines of diffusers, and loading them."""
