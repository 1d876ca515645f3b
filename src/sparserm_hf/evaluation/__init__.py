"""Evaluation of reward models: accuracy beside controls, calibration, benchmarks, attacks, the drift reference."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
