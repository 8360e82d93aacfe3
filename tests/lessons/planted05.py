"""Lesson 5: answers that its checks must reject, with a word of what they must say, and others they must accept."""

WRONG: dict = {}
RIGHT: dict = {}
