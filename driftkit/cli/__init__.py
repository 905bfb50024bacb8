"""The command line: one module per subcommand that parses, builds a config, calls one stage and prints. No tensors."""
