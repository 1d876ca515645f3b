"""Why a response got its reward: attribution by latent and token, reports, steering."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
