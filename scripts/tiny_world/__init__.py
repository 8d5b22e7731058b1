"""The drawn world of the bundled model's next training: words, scenes, captions, clips, and the judge of clips."""
