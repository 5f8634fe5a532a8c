"""The course: what every notebook starts and ends with, predictions, quizzes, and the checks of the exercises.

A chapter imports from here before anything has loaded torch, so here its kernel learns how threads should wait.
"""

import lazy_loader

from illava_lab.session.threads import wait_passively

wait_passively()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
