"""Base models: load, cut after a layer, pack texts that begin alike, and put directions into words."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
