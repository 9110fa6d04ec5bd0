"""Robustness of virtual histology: importance of inputs, noise, uncertainty and out-of-distribution inputs.

All scores are AUC and R2 of the centre voxels of held-out patches (:class:`HeldOut`) against histology, with
intervals over blocks. :mod:`mrhdata.registration.simulate` simulates misregistration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from mrhdata.analysis.rows import blocks_of
from mrhdata.errors import DataError
from mrhdata.inference.voxelwise import centres, predict_patches
from mrhdata.metrics import bootstrap, image, roc
from mrhdata.metrics.bootstrap import Bootstrap
from mrhdata.models.ensemble import MEAN, OOD_SCORE, UNCERTAINTY, Ensemble
from mrhdata.patching.positions import spread

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from mrhdata.patching.dataset import Patches

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
#: Score -> its value in each bootstrap replicate.
Samples = Mapping[str, NDArray[np.float64]]
#: Name -> numbers of the channels that are changed together.
Groups = Mapping[str, Sequence[int]]

#: Published standard deviation of the noise, as a fraction of the mean signal of the image.
NOISE = 0.1


@dataclass(frozen=True)
class HeldOut:
    """Patches outside the training set, and the histology at their centres.

    Attributes
    ----------
    inputs : (n, C, z, y, x) array
        Raw input patches; the rows of a voxel table become patches of one voxel.
    truth : (n,) array
        Histology at the centre of each patch.
    block : (n,) int array
        Spatial block of each patch, 0 to b - 1; see :func:`mrhdata.analysis.contrasts.row_blocks` for tables.
    channels : sequence of str
        Names of the channels.
    threshold : float
        Threshold of the histology.
    positive : {"below", "above"}
        Side of the threshold that is positive.
    bootstrap : Bootstrap
        Settings of the block bootstrap.
    widening : float
        Factor that widens intervals for correlation across the faces of blocks.
    """

    inputs: Floats
    truth: Floats
    block: Ints
    channels: Sequence[str]
    threshold: float
    positive: str = "below"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    widening: float = 1.0

    def scored(self, prediction: Floats) -> tuple[dict[str, float], Samples]:
        """Return AUC and R2 of a prediction (n,), and both in each bootstrap replicate."""
        sign = -1.0 if self.positive == "below" else 1.0
        positive = sign * self.truth > sign * self.threshold
        draws = bootstrap.draw_blocks(int(self.block.max()) + 1, self.bootstrap, self.widening)
        samples = {
            "auc": bootstrap.roc_replicates(positive, sign * prediction, self.block, draws).auc,
            "r2": bootstrap.error_replicates(self.truth, prediction, self.block, draws)[0],
        }
        return {"auc": roc.auc(positive, sign * prediction), "r2": image.r2(self.truth, prediction)}, samples

    def row(self, prediction: Floats) -> dict[str, float]:
        """Return ``auc`` and ``r2`` of a prediction (n,), each with ``_low`` and ``_high``."""
        return self._with_intervals(*self.scored(prediction))

    def loss(self, whole: Floats, less: Floats) -> dict[str, float]:
        """Return ``auc_loss`` and ``r2_loss``: scores of `whole` minus those of `less`, with paired intervals."""
        whole_scores, whole_samples = self.scored(whole)
        less_scores, less_samples = self.scored(less)
        estimates = {f"{name}_loss": whole_scores[name] - less_scores[name] for name in whole_scores}
        samples = {f"{name}_loss": whole_samples[name] - less_samples[name] for name in whole_samples}
        return self._with_intervals(estimates, samples)

    def _with_intervals(self, estimates: dict[str, float], samples: Samples) -> dict[str, float]:
        columns: dict[str, float] = {}
        for name, estimate in estimates.items():
            limits = bootstrap.interval(estimate, samples[name], self.bootstrap.level)
            columns |= {name: limits.estimate, f"{name}_low": limits.low, f"{name}_high": limits.high}
        return columns

    def alone(self) -> Groups:
        """Return one group per channel."""
        return {name: [number] for number, name in enumerate(self.channels)}


def held_out(
    patches: Patches, threshold: float, *, positive: str = "below", most: int = 4000, block_voxels: int | None = None
) -> HeldOut:
    """Gather held-out patches.

    Parameters
    ----------
    patches : Patches
        Patches with a target of one channel, from subjects or blocks outside the training set.
    threshold : float
        Threshold of the histology; choose it on training patches.
    positive : {"below", "above"}
        Side of the threshold that is positive.
    most : int
        Maximum number of patches; more are thinned evenly.
    block_voxels : int, optional
        Edge in voxels of the cubes that intervals resample; as for :func:`mrhdata.sensitivity` by default.

    Returns
    -------
    held_out : HeldOut
    """
    if positive not in ("below", "above"):
        raise DataError(f"positive must be 'below' or 'above'; got {positive!r}")
    rows = spread(len(patches), most)
    inputs, truth = _inputs_and_truth(patches, rows)
    index = patches.positions[rows].copy()
    # Subjects are stacked along z with a gap, so that no block holds voxels of two.
    index[:, 0] += 2 * (int(index[:, 0].max()) + 1) * patches.subject[rows]
    block, _, widening = blocks_of(truth.astype(np.float64), index, np.ones(len(rows), dtype=bool), block_voxels)
    return HeldOut(inputs, truth, block, list(patches.channels), threshold, positive, widening=widening)


def _inputs_and_truth(patches: Patches, rows: Ints) -> tuple[Floats, Floats]:
    """Return the inputs (n, C, z, y, x) of patches and the target (n,) at their centres."""
    parts = patches.gather(rows)
    if len(parts) != 2 or parts[1].shape[1] != 1:
        raise DataError("the patches must have one target channel. Pass one histology volume as target=")
    return parts[0], centres(parts[1])[:, 0]


# --- inputs ---------------------------------------------------------------------------------------------


def rician(values: Floats, sigma: Floats | float, rng: np.random.Generator) -> Floats:
    """Return the magnitude of values plus complex Gaussian noise of SD `sigma` (Gudbjartsson and Patz 1995).

    Examples
    --------
    >>> noisy = rician(np.zeros(20_000), 1.0, np.random.default_rng(0))
    >>> abs(noisy.mean() - np.sqrt(np.pi / 2)) < 0.01
    np.True_
    """
    noise = rng.standard_normal((2, *values.shape), dtype=np.float32) * sigma
    return np.hypot(values + noise[0], noise[1]).astype(values.dtype)


def noisy(inputs: Floats, share: float, rng: np.random.Generator, channels: Sequence[int] | None = None) -> Floats:
    """Return a copy of patches with Rician noise on some channels, all by default.

    The standard deviation is `share` times the channel's mean at the centres of the patches, that is, inside the
    mask that they were drawn from.
    """
    numbers = list(range(inputs.shape[1])) if channels is None else list(channels)
    sigma = share * np.abs(centres(inputs)[:, numbers].mean(axis=0))
    result = inputs.copy()
    result[:, numbers] = rician(inputs[:, numbers], sigma.reshape(-1, 1, 1, 1).astype(np.float32), rng)
    return result


def noise_contribution(
    model: nn.Module, held: HeldOut, *, share: float = NOISE, groups: Groups | None = None, seed: int = 0
) -> pd.DataFrame:
    """Measure the published contribution of each input: the change of the prediction with noise on that input.

    Liang et al. 2022 (eLife 11:e72331, figure 2) add 10 % Rician noise to one image at a time. The paper does not
    define the reference; here it is the image's mean inside the mask.

    Parameters
    ----------
    model : torch.nn.Module
        Trained network.
    held : HeldOut
        Held-out patches. Their histology is not used: the reference is the prediction without noise.
    share : float
        Standard deviation of the noise as a fraction of the channel's mean.
    groups : mapping, optional
        Channels that get noise together; one channel per group by default.
    seed : int
        Random seed.

    Returns
    -------
    table : pandas.DataFrame
        ``input``, ``rmse`` (in the target's units) and ``contribution`` (its share of the sum); largest first.
    """
    clean = predict_patches(model, held.inputs)[:, MEAN]
    rows = []
    for number, (name, channels) in enumerate((groups or held.alone()).items()):
        rng = np.random.default_rng((seed, number))
        prediction = predict_patches(model, noisy(held.inputs, share, rng, channels))[:, MEAN]
        rows.append({"input": name, "rmse": image.rmse(clean, prediction)})
    table = pd.DataFrame(rows)
    total = table["rmse"].sum()
    if not total > 0:
        raise DataError(
            f"noise of {share:g} times the mean changes no prediction. Pass a larger share, or a trained model"
        )
    return _largest_first(table.assign(contribution=table["rmse"] / total), "contribution")


def permutation_importance(
    model: nn.Module, held: HeldOut, *, groups: Groups | None = None, seed: int = 0
) -> pd.DataFrame:
    """Measure the loss of AUC and R2 when an input is shuffled among voxels (Breiman 2001, Mach. Learn. 45:5).

    The channels of a group are shuffled together, patch by patch. Two channels with the same information seem
    unimportant, because the network can use the other one.

    Parameters
    ----------
    model, held, groups, seed
        As for :func:`noise_contribution`.

    Returns
    -------
    table : pandas.DataFrame
        ``input``, ``auc_loss``, ``r2_loss``, the losses with ``_low`` and ``_high`` of a paired block bootstrap;
        largest loss of R2 first.
    """
    whole = predict_patches(model, held.inputs)[:, MEAN]
    rows = []
    for number, (name, channels) in enumerate((groups or held.alone()).items()):
        order = np.random.default_rng((seed, number)).permutation(len(held.inputs))
        shuffled = held.inputs.copy()
        shuffled[:, channels] = held.inputs[order][:, channels]
        rows.append({"input": name} | held.loss(whole, predict_patches(model, shuffled)[:, MEAN]))
    return _largest_first(pd.DataFrame(rows), "r2_loss")


def retraining_importance(
    train: Callable[[list[int]], nn.Module], held: HeldOut, *, groups: Groups | None = None
) -> pd.DataFrame:
    """Measure the loss of AUC and R2 when a network is trained without an input.

    Parameters
    ----------
    train : callable
        Function that takes the numbers of the remaining channels, in order, and returns a network trained on
        them. It is called once with all channels and once for each group.
    held, groups
        As for :func:`noise_contribution`.

    Returns
    -------
    table : pandas.DataFrame
        As from :func:`permutation_importance`. Two trainings also differ by chance: compare small losses with
        those of another seed.
    """
    every = list(range(len(held.channels)))
    whole = predict_patches(train(every), held.inputs)[:, MEAN]
    rows = []
    for name, channels in (groups or held.alone()).items():
        left = [number for number in every if number not in set(channels)]
        if not left:
            raise DataError(f"no channel is left without {name}. Pass smaller groups")
        less = predict_patches(train(left), held.inputs[:, left])[:, MEAN]
        rows.append({"input": name} | held.loss(whole, less))
    return _largest_first(pd.DataFrame(rows), "r2_loss")


def noise_sweep(model: nn.Module, held: HeldOut, shares: Sequence[float], *, seed: int = 0) -> pd.DataFrame:
    """Score predictions with increasing Rician noise on all inputs.

    Parameters
    ----------
    model, held, seed
        As for :func:`noise_contribution`.
    shares : sequence of float
        Standard deviations as fractions of each channel's mean, added to the noise of the inputs themselves.

    Returns
    -------
    table : pandas.DataFrame
        ``share``, ``auc``, ``r2``, each with ``_low`` and ``_high``.
    """
    rows = []
    for number, share in enumerate(shares):
        inputs = noisy(held.inputs, share, np.random.default_rng((seed, number)))
        rows.append({"share": share} | held.row(predict_patches(model, inputs)[:, MEAN]))
    return pd.DataFrame(rows)


def _largest_first(table: pd.DataFrame, by: str) -> pd.DataFrame:
    return table.sort_values(by, ascending=False, kind="stable", ignore_index=True)


# --- uncertainty ----------------------------------------------------------------------------------------------


def calibrated_ensemble(
    members: Sequence[nn.Module], training: Patches, validation: Patches, *, most: int = 20_000
) -> Ensemble:
    """Combine networks into an ensemble with calibrated uncertainty and an out-of-distribution (OOD) score.

    Parameters
    ----------
    members : sequence of torch.nn.Module
        Networks that were trained on `training` with different seeds.
    training : Patches
        Patches that define the distribution of the inputs.
    validation : Patches
        Patches that calibrate uncertainty and OOD score. The validation set of early stopping will do, because it
        chose only one epoch; the test set will not.
    most : int
        Maximum number of patches to use from each set, evenly spread.

    Returns
    -------
    ensemble : Ensemble
        Ensemble that works with :func:`mrhdata.predict` and :func:`mrhdata.models.save` as any network.

    Examples
    --------
    >>> import mrhdata
    >>> values = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    >>> mri = mrhdata.volume.from_array(values, spacing=(1, 1, 1), name="t2")
    >>> p = mrhdata.patches(mri, target=mri, shape=3, stride=1, plane="axial")
    >>> members = [mrhdata.models.create("mrhnet", in_channels=1, loop_blocks=1, seed=s) for s in range(2)]
    >>> for member in members:
    ...     _ = mrhdata.fit(member, p, p, mrhdata.training.TrainingConfig(epochs=1), progress=False)
    >>> predict_patches(calibrated_ensemble(members, p, p), p.gather(np.arange(5))[0]).shape
    (5, 3)
    """
    ensemble = Ensemble.of(members)
    ensemble.learn(centres(training.gather(spread(len(training), most))[0]))
    inputs, truth = _inputs_and_truth(validation, spread(len(validation), most))
    ensemble.calibrate(predict_patches(ensemble, inputs), truth)
    return ensemble


def out_of_distribution(mapped: xr.DataArray) -> xr.DataArray:
    """Return a mask of the voxels whose inputs are unlike those of training.

    Parameters
    ----------
    mapped : volume (c, z, y, x)
        Map from :func:`mrhdata.predict` with an :class:`~mrhdata.models.ensemble.Ensemble`.

    Returns
    -------
    flags : mask volume
        1 for an OOD score above 1, which 1 in 100 validation voxels has.

    Notes
    -----
    Swapped inputs are flagged everywhere. Wrong signals inside the range of the training data are not: tissue that
    looks like a mixture of others, a gain that changes by a tenth, a weak ghost (numbers in
    ``benchmarks/studies/robustness.py``). There the uncertainty grows less than the error too.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> answers = np.array([0.5, 0.1, 2.0], np.float32).reshape(3, 1, 1, 1)
    >>> out_of_distribution(from_array(answers, spacing=(1, 1, 1))).values.ravel().tolist()
    [1]
    """
    if mapped.sizes.get("c") != 3:
        raise DataError(
            f"the map must have 3 channels; got {mapped.sizes.get('c', 1)}. Predict with a calibrated ensemble"
        )
    flags = (mapped.isel(c=OOD_SCORE) > 1).astype(np.uint8).assign_attrs(mapped.attrs)
    return flags.assign_attrs(kind="mask").rename("out_of_distribution")


def coverage(truth: Floats, answers: Floats, levels: Sequence[float] = (0.5, 0.8, 0.95)) -> pd.DataFrame:
    """Measure how often the truth lies within normal intervals of the predicted uncertainty.

    Parameters
    ----------
    truth : (n,) array
        Histology.
    answers : (n, 3) array
        Predictions of an ensemble.
    levels : sequence of float
        Nominal levels of the intervals.

    Returns
    -------
    table : pandas.DataFrame
        ``level`` and ``covered``, the measured coverage; they are equal if the uncertainty is calibrated.

    Examples
    --------
    >>> answers = np.column_stack([np.zeros(1000), np.ones(1000), np.zeros(1000)])
    >>> coverage(np.random.default_rng(0).normal(size=1000), answers).covered.round(1).tolist()
    [0.5, 0.8, 1.0]
    """
    standardised = np.abs(truth - answers[:, MEAN]) / answers[:, UNCERTAINTY]
    covered = [float(np.mean(standardised <= norm.ppf((1 + level) / 2))) for level in levels]
    return pd.DataFrame({"level": list(levels), "covered": covered})
