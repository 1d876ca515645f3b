"""Load a reward model, and score conversations, rows and files with it.

`scored_texts.py` scores tokenised texts, `scored_rows.py` a stream of rows, `scored_files.py` a whole file.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
