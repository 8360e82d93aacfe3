"""The task: chains of symbols with one answer each, and the loss on it."""
