"""Label pairs of responses on a page, where a reward model picks the next pair."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
