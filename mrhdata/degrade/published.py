"""Published degradations ("crappifiers") with their original constants and order of steps.

PSSR: Fang et al. 2021, Nat. Methods 18:406; PSSR2: Stites et al. 2024, BMC Methods,
10.1186/s44330-024-00020-5.
"""

from __future__ import annotations

from mrhdata.degrade.degradation import Degradation
from mrhdata.degrade.steps import (
    Blur,
    Clip,
    Gaussian,
    IntensityGaussian,
    KeepMax,
    Poisson,
    Rescale,
    SaltPepper,
    Speckle,
    Stretch,
    Triangle,
    Zoom,
)

_SALT_PEPPER = SaltPepper(0.005, 0.005)
_FLUO = IntensityGaussian(0.5, offset=0.5e-10, width=5)

#: Published degradations by name. All reduce to a quarter along y and x, except ``micro_crappify`` and
#: ``speckle_crap``, which only add noise. PSSR adds noise at high resolution and then interpolates, which keeps noise
#: and aliasing (except in ``new_crap*``); PSSR2 reduces first. ``em_P_D_001`` had one seed for all images; here the
#: caller passes the seed. Left out are ``em_AG_P_D_001`` and ``fluo_G_D``, which do not run as published, and
#: ``fluo_AG_D`` and ``fluo_SP_D``, which are contained in ``fluo_SP_AG_D_sameas_preprint``.
PUBLISHED: dict[str, Degradation] = {
    name: Degradation(steps)
    for name, steps in {
        "em_AG_D_sameas_preprint": (IntensityGaussian(0.05, width=3), Clip(), Zoom(4)),
        "em_downsampleonly": (Zoom(4),),
        # A standard deviation of 3 grey values of 8 bits.
        "em_G_D_001": (Gaussian(3 / 255), Stretch(), Zoom(4)),
        "em_G_D_002": (Gaussian(0.15), Clip(), Zoom(4)),
        "em_P_D_001": (Poisson(), Clip(), Zoom(4)),
        "fluo_SP_AG_D_sameas_preprint": (KeepMax((_SALT_PEPPER, _FLUO, Clip())), Zoom(4)),
        "fluo_downsampleonly": (Zoom(4),),
        "new_crap": (KeepMax((_SALT_PEPPER, _FLUO, Clip())), Rescale(4)),
        "new_crap_AG_SP": (KeepMax((_FLUO, Clip(), _SALT_PEPPER)), Rescale(4)),
        "no_crap": (Rescale(4),),
        "micro_crappify": (*(Poisson(255),) * 10, Gaussian(1 / 255), Stretch()),
        "speckle_crap": (Speckle(0.02**0.5), Clip()),
        "pssr2_gaussian": (Triangle(4), Gaussian(13 / 255), Clip()),
        "pssr2_poisson": (Triangle(4), Poisson(255), Clip()),
        # 0.5 % of the pixels; the equal shares of salt and pepper are our interpretation of the paper.
        "pssr2_salt_pepper": (Triangle(4), SaltPepper(0.0025, 0.0025)),
        "pssr2_blur": (Triangle(4), Blur(2)),
    }.items()
}
