"""From prompts and seeds to files: names, places, whole files, resuming, and searches that end in a mask file."""
