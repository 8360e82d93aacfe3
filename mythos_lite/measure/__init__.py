"""Measuring and drawing: functions return rows or arrays, plots take them and return a ``Figure``."""
