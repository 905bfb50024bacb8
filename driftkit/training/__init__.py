"""The one training loop and its parts. It knows objectives by their protocol, never by name."""
