"""How good a reward model is: metrics, controls, benchmarks, and what its training responses were like."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
