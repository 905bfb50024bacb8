"""Judging encoders and samples: what a kernel would see, scores, speed, tables and the report."""
