"""Scores of predictions: every score is ``f(truth, prediction, ...)`` and needs only NumPy and SciPy."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
