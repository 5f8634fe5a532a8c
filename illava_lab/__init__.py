"""illava-lab: understand, measure and invent visual-token merging for large vision-language models.

What is listed in `__init__.pyi` is imported when it is first used, so that the command line can answer at once.
"""

import time

from illava_lab.starting import stop_on_ctrl_c

stop_on_ctrl_c()  # before anything that takes time

import lazy_loader  # noqa: E402

__version__ = "0.1.0"
_loaded_at = time.time()  # what is edited later is not what runs here; see measuring/own_code.py

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
