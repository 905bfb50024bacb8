"""The machine: device, ranks, memory, random numbers, signals, console, time.

Open `device.py` or `ranks.py` first.
"""
