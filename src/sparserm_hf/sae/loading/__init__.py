"""sae.loading."""
