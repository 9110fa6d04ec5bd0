"""Answers from volumes: sensitivity of contrasts, robustness of maps, counts by region, review of detections."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
