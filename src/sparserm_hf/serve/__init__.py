"""One HTTP server for a reward model; it needs the extra `serve`."""
