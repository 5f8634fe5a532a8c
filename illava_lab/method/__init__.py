"""What a method is: tokens, maps, strategies, their registry. Pure tensors, no model.

A strategy imports what it needs from here, and from nowhere else in the lab.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
