"""Several trained networks as one that says how sure it is, and how strange what it sees.

Uncertainty is the spread of the members' answers (Lakshminarayanan et al. 2017, NeurIPS 30:6402) and a floor
for what all members miss alike, such as the noise of the histology. Strangeness is the Mahalanobis distance
of a voxel's inputs from those of training (Lee et al. 2018, NeurIPS 31:7167, there of features).
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
from mrhdata.models.spec import Scale, Spec, spec_from

Floats = NDArray[np.floating[Any]]

#: Channels of the answer.
MEAN, UNCERTAINTY, STRANGENESS = 0, 1, 2
#: Part of familiar voxels whose strangeness is at most 1.
FAMILIAR = 0.99
#: Median of the size of a standard normal value.
_NORMAL_MEDIAN = 0.6744897501960817
#: What members must have in common.
_SHARED = ("channels", "patch", "axis", "neighbours", "spacing_mm")


class Ensemble(nn.Module):
    """Members as one network; (B, C, ...) raw voxels to (B, 3, ...): mean, uncertainty, strangeness.

    Mean and uncertainty have the target's units. A strangeness above 1 is beyond 99 of 100 voxels of the
    validation set. Each member applies its own intensity scales. Made by :meth:`of`, and complete after
    :meth:`learn` and :meth:`calibrate`, which :func:`mrhdata.analysis.robustness.calibrated` does in one step.

    Parameters
    ----------
    members : sequence of mapping
        The :class:`~mrhdata.models.spec.Spec` of each, as ``config.json`` holds it.
    """

    centre: Tensor
    width: Tensor
    factor: Tensor
    floor: Tensor
    limit: Tensor

    def __init__(self, members: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        specs = [spec_from(dict(member)) for member in members]
        _check(specs)
        networks = [create(spec.name, **spec.config) for spec in specs]
        self.members = nn.ModuleList(networks)
        self.ndim = int(networks[0].ndim)  # type: ignore[arg-type]
        self.blend = str(getattr(networks[0], "blend", "gaussian"))
        channels = len(specs[0].channels)
        for number, spec in enumerate(specs):
            for what in ("inputs", "target"):
                scale: Scale = getattr(spec, what)
                self._keep(f"{what}_offset_{number}", scale.offset, stored=False)
                self._keep(f"{what}_factor_{number}", scale.factor, stored=False)
        self._keep("centre", np.zeros(channels))
        self._keep("width", np.ones(channels))
        conv = nn.Conv2d if self.ndim == 2 else nn.Conv3d
        #: Takes standardised inputs to independent ones of unit variance.
        self.whiten = conv(channels, channels, 1, bias=False).requires_grad_(False)
        for name, value in (("factor", 1.0), ("floor", 0.0), ("limit", 1.0)):
            self._keep(name, [value])

    def _keep(self, name: str, values: Any, stored: bool = True) -> None:
        """Numbers by channel; those of the members' specs are not stored once more."""
        kept = torch.as_tensor(np.asarray(values), dtype=torch.float32)
        self.register_buffer(name, kept.reshape(1, -1, *(1,) * self.ndim), persistent=stored)

    @classmethod
    def of(cls, networks: Sequence[nn.Module]) -> Ensemble:
        """Put trained networks together.

        Parameters
        ----------
        networks : sequence of torch.nn.Module
            At least two, trained on the same channels and patches by :func:`mrhdata.fit`, with one answer.

        Raises
        ------
        ModelError
            They are too few, not trained, or do not fit together.
        """
        specs: list[Spec] = [network.spec for network in networks]  # type: ignore[misc]
        # As it would be read from a file, so that a saved ensemble has the same spec.
        config = {"members": json.loads(json.dumps([asdict(spec) for spec in specs]))}
        made = cls(**config)
        for mine, given in zip(made.members, networks, strict=True):
            mine.load_state_dict(given.state_dict())
        count, shared = len(specs[0].channels), {name: getattr(specs[0], name) for name in _SHARED}
        made.spec = Spec(  # type: ignore[assignment]
            "ensemble", config, inputs=_as_it_is(count), target=_as_it_is(3), **shared
        )
        return made.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map raw (B, C, ...) to (B, 3, ...)."""
        answers = torch.cat([self._answer(number, x) for number in range(len(self.members))], 1)
        spread = answers.std(1, keepdim=True)
        uncertainty = self.factor * torch.sqrt(torch.square(spread) + torch.square(self.floor))
        # Standardised before the layer: raw counts would lose their precision in bfloat16.
        white = self.whiten((x - self.centre) / self.width).float()
        strangeness = torch.sqrt(torch.square(white).sum(1, keepdim=True)) / self.limit
        return torch.cat([answers.mean(1, keepdim=True), uncertainty, strangeness], 1)

    def _answer(self, number: int, x: Tensor) -> Tensor:
        offset, factor, target_offset, target_factor = (
            getattr(self, f"{kind}_{what}_{number}") for kind in ("inputs", "target") for what in ("offset", "factor")
        )
        return self.members[number]((x - offset) / factor).float() * target_factor + target_offset

    def learn(self, voxels: Floats) -> None:
        """Take the distribution of familiar inputs from voxels of the training patches.

        The covariance of the standardised inputs is shrunk towards a multiple of the identity by the share of
        Chen et al. 2010 (IEEE Trans. Signal Process. 58:5016, eq. 23), since many channels correlate.

        Parameters
        ----------
        voxels : (n, C) array
            Raw.
        """
        values = np.asarray(voxels, dtype=np.float64)
        centre, width = values.mean(axis=0), values.std(axis=0)
        width = np.where(width > 0, width, 1.0)
        standardised = (values - centre) / width
        covariance = np.cov(standardised, rowvar=False, bias=True).reshape(len(centre), -1)
        matrix = np.linalg.inv(np.linalg.cholesky(shrunk(covariance, len(values))))
        self._put("centre", centre)
        self._put("width", width)
        self.whiten.weight.copy_(torch.as_tensor(matrix, dtype=torch.float32).reshape(self.whiten.weight.shape))

    def calibrate(self, answers: Floats, truth: Floats) -> None:
        """Fix the units of uncertainty and strangeness on held-out voxels.

        The floor is the likeliest one for normal errors; the factor then gives the standardised errors the
        median size of normal ones; the limit of strangeness is the 99th percentile.

        Parameters
        ----------
        answers : (n, 3) array
            Of this ensemble, not calibrated yet, for voxels that it was not trained on.
        truth : (n,) array
            Their histology.
        """
        error = np.abs(np.asarray(answers[:, MEAN], dtype=np.float64) - truth)
        spread = np.asarray(answers[:, UNCERTAINTY], dtype=np.float64)
        if not np.median(spread) > 0:
            raise DataError("the members answer alike, so their spread says nothing; train them with other seeds")
        floors = np.median(spread) * np.logspace(-1.5, 1.5, 31)
        floor = min(floors, key=lambda floor: _unlikely(error, np.hypot(spread, floor)))
        self._put("floor", [floor])
        self._put("factor", [np.median(error / np.hypot(spread, floor)) / _NORMAL_MEDIAN])
        self._put("limit", [np.quantile(answers[:, STRANGENESS], FAMILIAR)])

    def _put(self, name: str, values: Any) -> None:
        kept = getattr(self, name)
        kept.copy_(torch.as_tensor(np.asarray(values), dtype=torch.float32).reshape(kept.shape))


def shrunk(covariance: Floats, n: int) -> Floats:
    """A covariance of n samples (p, p), mixed with the identity of its size so that it can be inverted.

    Examples
    --------
    >>> shrunk(np.diag([2.0, 0.0]), n=4).diagonal().round(3).tolist()
    [1.5, 0.5]
    """
    p = len(covariance)
    size = np.trace(covariance) / p
    squares = (covariance**2).sum()
    excess = (n + 1 - 2 / p) * (squares - p * size**2)
    share = 1.0 if excess <= 0 else min(1.0, ((1 - 2 / p) * squares + (p * size) ** 2) / excess)
    return (1 - share) * covariance + share * size * np.eye(p)


def _unlikely(error: Floats, width: Floats) -> float:
    """Negative log-likelihood of normal errors as wide as `width` times the likeliest factor."""
    return float(np.log(width).mean() + np.log(np.mean((error / width) ** 2)) / 2)


def _check(specs: Sequence[Spec]) -> None:
    """Members fit together."""
    if len(specs) < 2:
        raise ModelError(f"{len(specs)} network has no spread; give at least two, trained with different seeds")
    for number, spec in enumerate(specs):
        if spec.inputs is None or spec.target is None or len(spec.target.factor) != 1:
            raise ModelError(f"member {number} ({spec.name}) has no scale of one target; train it with mrhdata.fit")
        for name in _SHARED:
            mine, first = getattr(spec, name), getattr(specs[0], name)
            if mine != first:
                raise ModelError(f"members differ in {name}: {first} and {mine}; train all on the same kind of patches")


def _as_it_is(channels: int) -> Scale:
    return Scale((0.0,) * channels, (1.0,) * channels)
