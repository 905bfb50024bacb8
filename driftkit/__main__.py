"""`python -m driftkit` (and `torchrun -m driftkit`): the same program as the console script."""

from driftkit.cli.app import main

if __name__ == "__main__":
    main()
