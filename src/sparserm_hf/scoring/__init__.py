"""Load a reward model, and score conversations, rows and files with it.

`scored_texts.py` scores tokenised texts. `scored_rows.py` scores a stream of rows, and adds the rewards to each row.
`resumable_files.py` scores a file in parts, so that a stopped run goes on.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
