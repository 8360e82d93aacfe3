"""The evidence: what is trained and measured, row by row, and what came out.

``plan`` says what runs there are, ``run`` trains and measures one, ``workers`` several at once; ``records`` are their
files, of which ``report`` makes text and figures. ``experiment`` is the main job, a study of one run.
"""
