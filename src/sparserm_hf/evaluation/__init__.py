"""Evaluate reward models: accuracy beside controls, calibration, benchmarks, attacks, the drift reference.

`saved_models.py` evaluates a checkpoint; `represented_rewards.py` does the work, for the trainer too. `evaluation.py`
holds the result, `figures.py` draws it. `benchmarks.py` runs benchmarks by the formulas in `benchmark_scores.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
