"""Rewards over HTTP."""

import lazy_loader

from ..runtime import needs_extra

needs_extra("The server", "serve", "fastapi", "prometheus_client", "uvicorn")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
