"""The model card that travels with every checkpoint."""
