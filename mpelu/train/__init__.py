"""Training: a recipe and a seed make a run, and a run makes one record."""
