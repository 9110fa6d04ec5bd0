from . import (
    block_predictor,
    case_folder,
    detector,
    input_check,
    output,
    peaks,
    predictor,
    region,
    segmenter,
    strategies,
    voxelwise,
)
from .detector import detect
from .output import Output
from .peaks import Peaks, find_peaks
from .predictor import predict
from .segmenter import segment
from .strategies.sliding_window import SlidingWindow
from .voxelwise import predict_patches, predict_rows

__all__ = [
    "Output",
    "Peaks",
    "SlidingWindow",
    "block_predictor",
    "case_folder",
    "detect",
    "detector",
    "find_peaks",
    "input_check",
    "output",
    "peaks",
    "predict",
    "predict_patches",
    "predict_rows",
    "predictor",
    "region",
    "segment",
    "segmenter",
    "strategies",
    "voxelwise",
]
