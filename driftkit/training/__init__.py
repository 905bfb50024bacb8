"""Training of any method: the loop, hooks between its steps, batches, optimizer, resuming, and what a step costs.

No method is named here (`methods`), nothing is scored (`scoring`). Open `trainer.py` first, then `hooks.py`.
"""
