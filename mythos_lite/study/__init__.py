"""The evidence: what is trained and measured, row by row, and what came out.

``plan`` says what runs there are, ``baselines`` holds the models to compare with, ``runner`` trains and
measures, ``tables`` writes rows as Markdown. A finished run is one file in ``results/study``.
"""
