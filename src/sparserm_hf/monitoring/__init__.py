"""Drift of a policy's responses away from the training responses of its reward model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
