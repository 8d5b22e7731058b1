"""A contact sheet of the videos in a folder."""
