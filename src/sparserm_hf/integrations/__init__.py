"""Other people's engines and formats; each file needs an extra of its own and is imported by nothing but the CLI."""
