"""Sparse autoencoders (SAEs): find, load, check and train them, and name their latents.

The calls behind `sparserm sae`: `check_sae` measures the fit of an SAE to a base model, `find_saes` lists the SAEs
that are published for a base model, and `train_sae` trains an SAE. `load_sae` loads an SAE in any known format.

Files by question:
    How is an SAE loaded, from which formats?     `loading/`; each format is a file of `loading/formats/`
    How is an SAE trained?                        `training/`
    How is the fit measured and judged?           `fit`; `measuring` compares set-ups, `check` loads model and texts
    How is the residual stream patched?           `hooks`
    How do latents get names?                     `naming`, from `token_properties`
    Where do Neuronpedia's descriptions come in?  `neuronpedia`
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
