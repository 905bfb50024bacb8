"""Runs side by side: tables, conclusions, speed, pictures, report. Scores are made in `scoring`.

Open `score_table.py` first.
"""
