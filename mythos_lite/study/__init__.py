"""The evidence: what is trained and measured, row by row, and what came out.

``plan`` says what runs there are, ``runner`` trains and measures, ``summary`` pools the records, ``tables`` and
``figures`` show them. A finished run is one file in ``results/study``.
"""
