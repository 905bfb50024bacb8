"""Settings, how their layers are merged, presets, pipeline files. Settings of methods stand next to them.

Open `settings.py` first.
"""
