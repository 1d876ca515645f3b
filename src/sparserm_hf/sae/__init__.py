"""Sparse autoencoders: loaded from any source into the embedded form, known by base model, trained."""
