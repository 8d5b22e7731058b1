"""The version, in one place: read by the build, by `adaspa --version` and by every report."""

__version__ = "0.2.0"
