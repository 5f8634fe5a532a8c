"""What a strategy raises, and how it checks its settings."""

from illava_lab.errors import LabError, one_of

__all__ = ["LabError", "one_of"]
