"""Settings, how their layers are merged, presets, pipeline files. Settings of methods stand beside them.

Open `settings.py` first.
"""
