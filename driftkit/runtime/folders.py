"""Where things that can be made again are kept."""

import os
from pathlib import Path

CACHE_VARIABLE = "DRIFTKIT_CACHE"


def cache_folder() -> Path:
    """$DRIFTKIT_CACHE, else driftkit/ in $XDG_CACHE_HOME or ~/.cache. Not made here."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "driftkit"
