"""The quality of a video: compared with another one, or on its own."""
