"""Reward models inside other libraries: TRL, Ray Data, vLLM, and transformers' own sequence classifiers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
