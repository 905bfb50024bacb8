"""Files: run folders, records, atomic writes, checksums, locks, downloads. README.md states the promises.

Open `run_folder.py` first.
"""
