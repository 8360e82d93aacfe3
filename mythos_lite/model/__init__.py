"""The recurrent-depth transformer and its parts; ``loop`` puts them together."""
