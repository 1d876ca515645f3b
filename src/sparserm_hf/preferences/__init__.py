"""Preference pairs: loaded, checked, put through the chat template, tokenised."""
