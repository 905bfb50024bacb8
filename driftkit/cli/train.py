def command() -> None:
    """Under construction."""
