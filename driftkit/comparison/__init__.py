"""Runs side by side: summaries, score tables, agreement of evaluators, conclusions, speed, pictures and the report.

Scores are made in `scoring`; the order of the work is in `stages/compare.py`. Open `score_table.py` first.
"""
