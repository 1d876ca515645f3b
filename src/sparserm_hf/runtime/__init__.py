"""Foundations that every room uses.

Devices, processes and batches; files that are replaced as a whole, the cache and the Hub; errors, the terminal and
experiment trackers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
