"""Explain rewards by the contributions of latents and tokens, report on latents, and edit them.

`attribution.py` explains one reward, and `text_explanation.py` holds the result. `explained_rows.py` explains the rows
of files, and `explained_pairs.py` explains pairs for reports. `compared_models.py` compares two models, and
`comparison.py` holds the result. `latent_reports.py`, `passages.py` and `describe.py` report on latents.
`html_report.py` and `pages.py` write the HTML report. `editing.py` steers and labels latents.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
