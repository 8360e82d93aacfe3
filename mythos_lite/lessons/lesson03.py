"""Exercises of lesson 3."""

from __future__ import annotations

from mythos_lite.lessons.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
