"""Files: checkpoints, and where a number comes from."""
