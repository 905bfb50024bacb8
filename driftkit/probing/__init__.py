"""What an encoder's kernel detects: corruptions, measurement, verdict, figure, cost. Encoders are in `encoders`.

Open `measurement.py` first.
"""
