"""What a run took and what it left out."""
