"""Explanations of rewards: the contribution of each latent and each token, reports on latents, editing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
