"""The demo: a base model and preference data that need no hub."""
