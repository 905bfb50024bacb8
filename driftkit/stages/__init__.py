"""One function per subcommand: config and input artifacts in, output artifact out."""
