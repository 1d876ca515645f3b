"""Base models: load, cut after a layer, run several texts in one sequence, read directions as words."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
