"""Training: the loop over steps, and what it is asked for by name."""
