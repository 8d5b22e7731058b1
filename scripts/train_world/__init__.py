"""Trains and exports the bundled model on the drawn world of ``scripts.tiny_world``, on one GPU or several."""
