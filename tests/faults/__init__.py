"""Killing driftkit's processes at chosen and random moments, and looking at what they leave."""
