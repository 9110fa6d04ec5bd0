"""How virtual histology holds up: which inputs it lives on, noise, and whether it knows when it may be wrong.

Everything is judged on held-out patches (:class:`HeldOut`): their centre voxels against histology, as AUC
and R2 with intervals over blocks. How maps bear misregistration is simulated with
:mod:`mrhdata.registration.simulate`.
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
from mrhdata.models.ensemble import MEAN, STRANGENESS, UNCERTAINTY, Ensemble
from mrhdata.patching.positions import spread

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from mrhdata.patching.dataset import Patches

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
#: Score -> its value in each resampling.
Samples = Mapping[str, NDArray[np.float64]]
#: Name -> numbers of the channels that are treated together.
Groups = Mapping[str, Sequence[int]]

#: Published strength of the noise, a part of an image's mean signal.
NOISE = 0.1


@dataclass(frozen=True)
class HeldOut:
    """Patches that no model has trained on, and the histology at their centres.

    Attributes
    ----------
    inputs : (n, C, z, y, x) array
        Raw; rows of a voxel table have lengths of 1.
    truth : (n,) array
    block : (n,) int array
        Spatial block of each, 0 to b - 1; see :func:`mrhdata.analysis.contrasts.row_blocks` for tables.
    channels : sequence of str
    threshold, positive
        Histology ``positive`` ("below" or "above") `threshold` is what an AUC asks for.
    bootstrap : Bootstrap
    widening : float
        How much wider intervals are for what is alike across the faces of blocks.
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
        """AUC and R2 of a prediction (n,), and both in each resampling of blocks."""
        sign = -1.0 if self.positive == "below" else 1.0
        positive = sign * self.truth > sign * self.threshold
        draws = bootstrap.draw_blocks(int(self.block.max()) + 1, self.bootstrap, self.widening)
        samples = {
            "auc": bootstrap.roc_replicates(positive, sign * prediction, self.block, draws).auc,
            "r2": bootstrap.error_replicates(self.truth, prediction, self.block, draws)[0],
        }
        return {"auc": roc.auc(positive, sign * prediction), "r2": image.r2(self.truth, prediction)}, samples

    def row(self, prediction: Floats) -> dict[str, float]:
        """``auc``, ``r2`` of a prediction, each with ``_low`` and ``_high``."""
        return self._with_intervals(*self.scored(prediction))

    def loss(self, whole: Floats, less: Floats) -> dict[str, float]:
        """By how much `less` scores below `whole`, over the same resamplings: ``auc_loss``, ``r2_loss``."""
        (first, many), (second, other) = self.scored(whole), self.scored(less)
        estimates = {f"{score}_loss": first[score] - second[score] for score in first}
        return self._with_intervals(estimates, {f"{score}_loss": many[score] - other[score] for score in many})

    def _with_intervals(self, estimates: dict[str, float], samples: Samples) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, estimate in estimates.items():
            one = bootstrap.interval(estimate, samples[name], self.bootstrap.level)
            found |= {name: one.estimate, f"{name}_low": one.low, f"{name}_high": one.high}
        return found

    def alone(self) -> Groups:
        """Every channel by itself."""
        return {name: [number] for number, name in enumerate(self.channels)}


def held_out(
    patches: Patches, threshold: float, *, positive: str = "below", most: int = 4000, block_voxels: int | None = None
) -> HeldOut:
    """Gather held-out patches.

    Parameters
    ----------
    patches : Patches
        With a target of one channel, of subjects or blocks that took no part in training.
    threshold, positive
        As for :func:`mrhdata.sensitivity`; choose the threshold on training patches.
    most : int
        If there are more patches, so many evenly spread ones.
    block_voxels : int, optional
        Edge of the cubes that intervals resample; as for :func:`mrhdata.sensitivity` by default.
    """
    if positive not in ("below", "above"):
        raise DataError(f"positive is 'below' or 'above', not {positive!r}")
    rows = spread(len(patches), most)
    inputs, truth = _centred(patches, rows)
    place = patches.positions[rows].copy()
    # Subjects lie one behind the other.
    place[:, 0] += 2 * (int(place[:, 0].max()) + 1) * patches.subject[rows]
    block, _, widening = blocks_of(truth.astype(np.float64), place, np.ones(len(rows), dtype=bool), block_voxels)
    return HeldOut(inputs, truth, block, list(patches.channels), threshold, positive, widening=widening)


def _centred(patches: Patches, rows: Ints) -> tuple[Floats, Floats]:
    """Inputs (n, C, z, y, x) of patches and the target (n,) at their centres."""
    parts = patches.gather(rows)
    if len(parts) != 2 or parts[1].shape[1] != 1:
        raise DataError("the patches have no single target channel; give one histology volume as target=")
    return parts[0], centres(parts[1])[:, 0]


# --- inputs ---------------------------------------------------------------------------------------------


def rician(values: Floats, sigma: Floats | float, rng: np.random.Generator) -> Floats:
    """Magnitude of values with complex Gaussian noise of standard deviation `sigma` (Gudbjartsson and Patz 1995).

    Examples
    --------
    >>> noisy = rician(np.zeros(20_000), 1.0, np.random.default_rng(0))
    >>> abs(noisy.mean() - np.sqrt(np.pi / 2)) < 0.01
    np.True_
    """
    noise = rng.standard_normal((2, *values.shape), dtype=np.float32) * sigma
    return np.hypot(values + noise[0], noise[1]).astype(values.dtype)


def noisy(inputs: Floats, share: float, rng: np.random.Generator, channels: Sequence[int] | None = None) -> Floats:
    """A copy of patches with Rician noise on some channels, all by default.

    The standard deviation is `share` of the channel's mean at the centres of the patches, which is its mean
    inside the mask that they were drawn from.
    """
    chosen = list(range(inputs.shape[1])) if channels is None else list(channels)
    sigma = share * np.abs(centres(inputs)[:, chosen].mean(axis=0))
    found = inputs.copy()
    found[:, chosen] = rician(inputs[:, chosen], sigma.reshape(-1, 1, 1, 1).astype(np.float32), rng)
    return found


def noise_contribution(
    model: nn.Module, held: HeldOut, *, share: float = NOISE, groups: Groups | None = None, seed: int = 0
) -> pd.DataFrame:
    """Contribution of each input as published: how much noise on it alone changes the answer.

    Liang et al. 2022 (eLife 11:e72331, figure 2) add 10 % Rician noise to one image at a time; the paper does
    not say of what. Here it is 10 % of the image's mean inside the mask.

    Parameters
    ----------
    model : torch.nn.Module
    held : HeldOut
        Its histology plays no part: the reference is the answer without noise.
    share : float
        Standard deviation of the noise, a part of the channel's mean.
    groups : mapping, optional
        Channels that become noisy together; each alone by default.
    seed : int

    Returns
    -------
    table : pandas.DataFrame
        ``input``, ``rmse`` (target's units) and ``contribution``, which add up to 1; the largest first.
    """
    clean = predict_patches(model, held.inputs)[:, MEAN]
    rows = []
    for number, (name, channels) in enumerate((groups or held.alone()).items()):
        rng = np.random.default_rng((seed, number))
        found = predict_patches(model, noisy(held.inputs, share, rng, channels))[:, MEAN]
        rows.append({"input": name, "rmse": image.rmse(clean, found)})
    table = pd.DataFrame(rows)
    total = table["rmse"].sum()
    if not total > 0:
        raise DataError(f"noise of {share:g} of the mean changes no answer; give a larger share, or a trained model")
    return _ordered(table.assign(contribution=table["rmse"] / total), "contribution")


def permutation_importance(
    model: nn.Module, held: HeldOut, *, groups: Groups | None = None, seed: int = 0
) -> pd.DataFrame:
    """What scores lose when the values of an input are shuffled among voxels (Breiman 2001, Mach. Learn. 45:5).

    The channels of a group move together, and a patch as a whole. What another channel also carries is not
    missed, so channels that duplicate each other seem unimportant one by one.

    Parameters
    ----------
    model, held, groups, seed
        As for :func:`noise_contribution`.

    Returns
    -------
    table : pandas.DataFrame
        ``input``, ``auc_loss``, ``r2_loss``, each with ``_low`` and ``_high`` of a paired block bootstrap;
        the largest loss of R2 first.
    """
    whole = predict_patches(model, held.inputs)[:, MEAN]
    rows = []
    for number, (name, channels) in enumerate((groups or held.alone()).items()):
        order = np.random.default_rng((seed, number)).permutation(len(held.inputs))
        shuffled = held.inputs.copy()
        shuffled[:, channels] = held.inputs[order][:, channels]
        rows.append({"input": name} | held.loss(whole, predict_patches(model, shuffled)[:, MEAN]))
    return _ordered(pd.DataFrame(rows), "r2_loss")


def retraining_importance(
    train: Callable[[list[int]], nn.Module], held: HeldOut, *, groups: Groups | None = None
) -> pd.DataFrame:
    """What scores lose when a network never had an input.

    Parameters
    ----------
    train : callable
        Takes the numbers of the channels that are left, in order, and returns a network trained on them.
        Called once with all of them and once for each group.
    held, groups
        As for :func:`noise_contribution`.

    Returns
    -------
    table : pandas.DataFrame
        As of :func:`permutation_importance`. Two trainings differ by chance too: read small losses beside
        those of another seed.
    """
    every = list(range(len(held.channels)))
    whole = predict_patches(train(every), held.inputs)[:, MEAN]
    rows = []
    for name, channels in (groups or held.alone()).items():
        left = [number for number in every if number not in set(channels)]
        if not left:
            raise DataError(f"without {name} no channel is left; leave out fewer")
        less = predict_patches(train(left), held.inputs[:, left])[:, MEAN]
        rows.append({"input": name} | held.loss(whole, less))
    return _ordered(pd.DataFrame(rows), "r2_loss")


def noise_sweep(model: nn.Module, held: HeldOut, shares: Sequence[float], *, seed: int = 0) -> pd.DataFrame:
    """Scores with Rician noise of growing strength on all inputs.

    Parameters
    ----------
    model, held, seed
        As for :func:`noise_contribution`.
    shares : sequence of float
        Standard deviations, parts of each channel's mean; the inputs have their own noise besides.

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


def _ordered(table: pd.DataFrame, by: str) -> pd.DataFrame:
    return table.sort_values(by, ascending=False, kind="stable", ignore_index=True)


# --- doubt ----------------------------------------------------------------------------------------------


def calibrated_ensemble(
    members: Sequence[nn.Module], training: Patches, validation: Patches, *, most: int = 20_000
) -> Ensemble:
    """Make an ensemble that says how sure it is and how strange its inputs are.

    Parameters
    ----------
    members : sequence of torch.nn.Module
        Trained on `training` with different seeds.
    training : Patches
        Give the distribution of familiar inputs.
    validation : Patches
        Give the units of uncertainty and strangeness. They may be those of early stopping, which chose one
        epoch by them; the test set may not.
    most : int
        Patches of each that are looked at, evenly spread.

    Returns
    -------
    ensemble : Ensemble
        Goes through :func:`mrhdata.predict` and :func:`mrhdata.models.save` as any network.

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
    made = Ensemble.of(members)
    made.learn(centres(training.gather(spread(len(training), most))[0]))
    inputs, truth = _centred(validation, spread(len(validation), most))
    made.calibrate(predict_patches(made, inputs), truth)
    return made


def unfamiliar(mapped: xr.DataArray) -> xr.DataArray:
    """Where the inputs of an ensemble's map were unlike those of training.

    Parameters
    ----------
    mapped : volume (c, z, y, x)
        From :func:`mrhdata.predict` with an :class:`~mrhdata.models.ensemble.Ensemble`.

    Returns
    -------
    flags : mask volume
        1 where strangeness is above 1, which one in a hundred familiar voxels is.

    Notes
    -----
    Inputs in the wrong order are flagged everywhere. Signals that lie among those of training are not, however
    wrong: tissue that looks like a mixture of others, gain that changes by a tenth, a weak ghost
    (``benchmarks/studies/robustness.py`` has the figures). Nor does uncertainty grow there as much as the error.

    Examples
    --------
    >>> from mrhdata.volume.construct import from_array
    >>> answers = np.array([0.5, 0.1, 2.0], np.float32).reshape(3, 1, 1, 1)
    >>> unfamiliar(from_array(answers, spacing=(1, 1, 1))).values.ravel().tolist()
    [1]
    """
    if mapped.sizes.get("c") != 3:
        raise DataError(f"the map has {mapped.sizes.get('c', 1)} channels, not 3; make it with a calibrated ensemble")
    flags = (mapped.isel(c=STRANGENESS) > 1).astype(np.uint8).assign_attrs(mapped.attrs)
    return flags.assign_attrs(kind="mask").rename("unfamiliar")


def coverage(truth: Floats, answers: Floats, levels: Sequence[float] = (0.5, 0.8, 0.95)) -> pd.DataFrame:
    """How often the truth lies within normal intervals of the stated uncertainty.

    Parameters
    ----------
    truth : (n,) array
    answers : (n, 3) array
        Of an ensemble.
    levels : sequence of float

    Returns
    -------
    table : pandas.DataFrame
        ``level`` and ``covered``, which is the same where uncertainty is honest.

    Examples
    --------
    >>> answers = np.column_stack([np.zeros(1000), np.ones(1000), np.zeros(1000)])
    >>> coverage(np.random.default_rng(0).normal(size=1000), answers).covered.round(1).tolist()
    [0.5, 0.8, 1.0]
    """
    size = np.abs(truth - answers[:, MEAN]) / answers[:, UNCERTAINTY]
    covered = [float(np.mean(size <= norm.ppf((1 + level) / 2))) for level in levels]
    return pd.DataFrame({"level": list(levels), "covered": covered})
