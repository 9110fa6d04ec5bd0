from . import (
    bias,
    diffusion,
    gradients,
    intensity,
    parameter_maps,
    pipeline,
    regrid,
    spline_fields,
)

__all__ = [
    "bias",
    "diffusion",
    "gradients",
    "intensity",
    "parameter_maps",
    "pipeline",
    "regrid",
    "spline_fields",
]
