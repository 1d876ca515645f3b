"""Base models: load them, cut them after a layer, pack texts with a shared prefix, find words for directions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
