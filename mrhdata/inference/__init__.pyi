from . import (
    box_reader,
    detector,
    input_check,
    peaks,
    predictor,
    segmenter,
    strategies,
)
from .detector import detect
from .peaks import Peaks, find_peaks
from .predictor import Output, predict, predict_patches, predict_rows
from .segmenter import segment
from .strategies import Windowing

__all__ = [
    "Output",
    "Peaks",
    "Windowing",
    "box_reader",
    "detect",
    "detector",
    "find_peaks",
    "input_check",
    "peaks",
    "predict",
    "predict_patches",
    "predict_rows",
    "predictor",
    "segment",
    "segmenter",
    "strategies",
]
