"""The subcommands of `gex-bridge`, a module each; they do not know each other."""
