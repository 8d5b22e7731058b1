"""Training of the bundled model's successor on the drawn world of ``scripts.tiny_world``, on one GPU or several."""
