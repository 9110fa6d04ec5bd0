"""Deep ensembles: several trained networks as one, with uncertainty and an out-of-distribution score.

Uncertainty combines the spread of the members (Lakshminarayanan et al. 2017, NeurIPS 30:6402) with a floor for
errors that all members share, such as the noise of the histology. The out-of-distribution (OOD) score is the
Mahalanobis distance of a voxel's inputs from the training inputs (Lee et al. 2018, NeurIPS 31:7167, who use features
instead of inputs).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mrhdata.errors import DataError, ModelError
from mrhdata.models.registry import create
from mrhdata.models.spec import IntensityScale, ModelSpec, spec_from

Floats = NDArray[np.floating[Any]]

#: Channels of the output.
MEAN, UNCERTAINTY, OOD_SCORE = 0, 1, 2
#: Fraction of held-out voxels whose OOD score is at most 1.
IN_DISTRIBUTION = 0.99
#: Median absolute value of a standard normal variable.
_NORMAL_MEDIAN = 0.6744897501960817
#: Fields of the specification that must be equal in all members.
_SHARED_FIELDS = ("channels", "patch", "axis", "context_slices", "spacing_mm")


class Ensemble(nn.Module):
    """Several networks as one; raw voxels (B, C, ...) to mean, uncertainty and OOD score (B, 3, ...).

    Mean and uncertainty have the units of the target. The OOD score exceeds 1 in 1 of 100 validation voxels. Each
    member applies its own intensity scales. Create an ensemble with :meth:`of`, then call :meth:`learn` and
    :meth:`calibrate`; :func:`mrhdata.analysis.robustness.calibrated_ensemble` does all three.

    Parameters
    ----------
    members : sequence of mapping
        Specification of each member, as stored in ``config.json`` (:class:`~mrhdata.models.spec.ModelSpec`).
    """

    centre: Tensor
    width: Tensor
    factor: Tensor
    floor: Tensor
    limit: Tensor

    def __init__(self, members: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        specs = [spec_from(dict(member)) for member in members]
        _check_members(specs)
        networks = [create(spec.name, **spec.config) for spec in specs]
        self.members = nn.ModuleList(networks)
        self.ndim = int(networks[0].ndim)  # type: ignore[arg-type]
        self.blend = str(getattr(networks[0], "blend", "gaussian"))
        channels = len(specs[0].channels)
        for number, spec in enumerate(specs):
            for side in ("inputs", "target"):
                scale: IntensityScale = getattr(spec, side)
                # The specification stores these, so the weights file does not.
                self._register(f"{side}_offset_{number}", scale.offset, stored=False)
                self._register(f"{side}_factor_{number}", scale.factor, stored=False)
        self._register("centre", np.zeros(channels))
        self._register("width", np.ones(channels))
        conv = nn.Conv2d if self.ndim == 2 else nn.Conv3d
        #: Maps standardised inputs to uncorrelated ones of unit variance.
        self.whiten = conv(channels, channels, 1, bias=False).requires_grad_(False)
        for name, value in (("factor", 1.0), ("floor", 0.0), ("limit", 1.0)):
            self._register(name, [value])

    def _register(self, name: str, values: Any, stored: bool = True) -> None:
        """Register a buffer of one value per channel."""
        buffer = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        self.register_buffer(name, buffer.reshape(1, -1, *(1,) * self.ndim), persistent=stored)

    @classmethod
    def of(cls, networks: Sequence[nn.Module]) -> Ensemble:
        """Combine trained networks into an ensemble.

        Parameters
        ----------
        networks : sequence of torch.nn.Module
            Two or more networks with one output channel, trained on the same channels and patches by
            :func:`mrhdata.fit`.

        Raises
        ------
        ModelError
            If they are too few, not trained, or incompatible.
        """
        specs: list[ModelSpec] = [network.spec for network in networks]  # type: ignore[misc]
        # The round trip through JSON makes this spec equal to that of a saved and loaded ensemble.
        config = {"members": json.loads(json.dumps([asdict(spec) for spec in specs]))}
        ensemble = cls(**config)
        for member, network in zip(ensemble.members, networks, strict=True):
            member.load_state_dict(network.state_dict())
        channels = len(specs[0].channels)
        shared = {name: getattr(specs[0], name) for name in _SHARED_FIELDS}
        ensemble.spec = ModelSpec(  # type: ignore[assignment]
            "ensemble", config, inputs=_identity_scale(channels), target=_identity_scale(3), **shared
        )
        return ensemble.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map raw (B, C, ...) to (B, 3, ...)."""
        outputs = torch.cat([self._run_member(number, x) for number in range(len(self.members))], 1)
        spread = outputs.std(1, keepdim=True)
        uncertainty = self.factor * torch.sqrt(torch.square(spread) + torch.square(self.floor))
        # Inputs are standardised before the layer because raw counts would lose precision in bfloat16.
        white = self.whiten((x - self.centre) / self.width).float()
        ood_score = torch.sqrt(torch.square(white).sum(1, keepdim=True)) / self.limit
        return torch.cat([outputs.mean(1, keepdim=True), uncertainty, ood_score], 1)

    def _run_member(self, number: int, x: Tensor) -> Tensor:
        offset, factor, target_offset, target_factor = (
            getattr(self, f"{side}_{term}_{number}") for side in ("inputs", "target") for term in ("offset", "factor")
        )
        return self.members[number]((x - offset) / factor).float() * target_factor + target_offset

    def learn(self, voxels: Floats) -> None:
        """Estimate the distribution of the training inputs.

        Many channels correlate, so the covariance of the standardised inputs is shrunk towards a multiple of the
        identity (Chen et al. 2010, IEEE Trans. Signal Process. 58:5016, eq. 23).

        Parameters
        ----------
        voxels : (n, C) array
            Raw voxels of the training patches.
        """
        values = np.asarray(voxels, dtype=np.float64)
        centre, width = values.mean(axis=0), values.std(axis=0)
        width = np.where(width > 0, width, 1.0)
        standardised = (values - centre) / width
        covariance = np.cov(standardised, rowvar=False, bias=True).reshape(len(centre), -1)
        matrix = np.linalg.inv(np.linalg.cholesky(shrunk(covariance, len(values))))
        self._set("centre", centre)
        self._set("width", width)
        self.whiten.weight.copy_(torch.as_tensor(matrix, dtype=torch.float32).reshape(self.whiten.weight.shape))

    def calibrate(self, answers: Floats, truth: Floats) -> None:
        """Calibrate uncertainty and OOD score on held-out voxels.

        The floor maximises the likelihood of normal errors. The factor then sets the median absolute standardised
        error to that of a normal variable. The limit of the OOD score is its 99th percentile.

        Parameters
        ----------
        answers : (n, 3) array
            Output of this ensemble before calibration for voxels outside the training set.
        truth : (n,) array
            Histology of these voxels.
        """
        error = np.abs(np.asarray(answers[:, MEAN], dtype=np.float64) - truth)
        spread = np.asarray(answers[:, UNCERTAINTY], dtype=np.float64)
        if not np.median(spread) > 0:
            raise DataError("the members give equal results, so their spread is 0; train them with different seeds")
        floors = np.median(spread) * np.logspace(-1.5, 1.5, 31)
        floor = min(floors, key=lambda floor: _negative_log_likelihood(error, np.hypot(spread, floor)))
        self._set("floor", [floor])
        self._set("factor", [np.median(error / np.hypot(spread, floor)) / _NORMAL_MEDIAN])
        self._set("limit", [np.quantile(answers[:, OOD_SCORE], IN_DISTRIBUTION)])

    def _set(self, name: str, values: Any) -> None:
        buffer = getattr(self, name)
        buffer.copy_(torch.as_tensor(np.asarray(values), dtype=torch.float32).reshape(buffer.shape))


def shrunk(covariance: Floats, n: int) -> Floats:
    """Shrink a covariance matrix (p, p) of n samples towards a scaled identity, which makes it invertible.

    Examples
    --------
    >>> shrunk(np.diag([2.0, 0.0]), n=4).diagonal().round(3).tolist()
    [1.5, 0.5]
    """
    p = len(covariance)
    mean_variance = np.trace(covariance) / p
    squares = (covariance**2).sum()
    excess = (n + 1 - 2 / p) * (squares - p * mean_variance**2)
    weight = 1.0 if excess <= 0 else min(1.0, ((1 - 2 / p) * squares + (p * mean_variance) ** 2) / excess)
    return (1 - weight) * covariance + weight * mean_variance * np.eye(p)


def _negative_log_likelihood(error: Floats, width: Floats) -> float:
    """Return the mean negative log-likelihood of normal errors whose SD is `width` times the most likely factor."""
    return float(np.log(width).mean() + np.log(np.mean((error / width) ** 2)) / 2)


def _check_members(specs: Sequence[ModelSpec]) -> None:
    """Raise ModelError unless there are two compatible members or more."""
    if len(specs) < 2:
        raise ModelError(f"an ensemble needs two networks or more; got {len(specs)}. Train more with different seeds")
    for number, spec in enumerate(specs):
        if spec.inputs is None or spec.target is None or len(spec.target.factor) != 1:
            raise ModelError(f"member {number} ({spec.name}) has no scale of one target; train it with mrhdata.fit")
        for name in _SHARED_FIELDS:
            value, expected = getattr(spec, name), getattr(specs[0], name)
            if value != expected:
                raise ModelError(
                    f"{name} must be equal in all members; got {expected} and {value}. Train them on the same patches"
                )


def _identity_scale(channels: int) -> IntensityScale:
    return IntensityScale((0.0,) * channels, (1.0,) * channels)
