"""The method: select latents, project on their directions, fit the reward head, assemble the model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
