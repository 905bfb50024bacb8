"""Networks. Open `registry.py` first: a network is a file with its config, its module and its row of `MODELS`."""
