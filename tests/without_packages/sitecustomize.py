"""A Python that lacks the packages which WITHOUT_PACKAGES names, separated by commas.

Python imports this file at its start where this folder is in PYTHONPATH; started processes inherit
that. Of what is None here an import says that there is no such module.
"""

import os
import sys

sys.modules |= dict.fromkeys(filter(None, os.environ.get("WITHOUT_PACKAGES", "").split(",")))
