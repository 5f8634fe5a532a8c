"""Plots and pictures: plain functions that return figures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["pictures", "plots"])
