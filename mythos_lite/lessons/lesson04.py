"""Exercises of lesson 4."""

from __future__ import annotations

from mythos_lite.lessons.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
