"""Explain rewards by the contributions of latents and tokens, report on latents, and edit them.

One reward: `attribution.py` computes a `text_explanation.py`. Rows and pairs: `explained_rows.py` for files,
`explained_pairs.py` for reports. Two models: `compared_models.py` makes a `comparison.py`. Latents:
`latent_reports.py`, with `passages.py` and `describe.py`. The report is made by `html_report.py` and `pages.py`;
`editing.py` steers and labels latents.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
