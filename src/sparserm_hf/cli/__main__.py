"""`python -m sparserm_hf.cli` is `sparserm`."""

import sys

from .main import main

sys.exit(main())
