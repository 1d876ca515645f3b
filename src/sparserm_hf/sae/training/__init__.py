"""sae.training."""
