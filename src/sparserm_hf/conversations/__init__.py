"""Rows of any form become conversations, and conversations become token ids and the place of the response."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
