"""The method: select latents, project on their directions, fit the reward head, assemble the model.

`trainer.py` is the recipe from preference pairs to a saved model. `steps.py` holds its steps on vectors. Their
mathematics is in `selection.py`, `directions.py`, `linear_head.py` and `mlp_head.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
