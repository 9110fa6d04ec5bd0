"""Difficulty of the cleared phantom: classical detectors of cells, and how many cells are visible at all.

    python benchmarks/studies/cleared_phantom.py [--train 6] [--test 2]

The settings of every detector, including its threshold, have the best F1 on crops of the training brains
(seeds 0 to 5, pooled). Detectors are scored on whole held-out brains (seeds 6 and 7). A detection is true if it is
matched with a cell within 6 voxels (3 for the second score), one to one, with the maximum number of matches.

- **Laplacian of Gaussian**: weighted by the squared width along each axis, maximum over several widths; the blur of
  the optics widens the filter along z. On counts, on counts over their local mean, and after a white top-hat per plane.
- **LoG, scale chosen**: the maximum over position and width; detections whose width is not that of a cell are dropped.
- **Template**: normalised cross-correlation with the mean cell of the training crops.

The **visibility oracle** uses the true positions: a cell is visible if the mean of the 3 x 3 x 3 voxels at its
centre exceeds the median of a shell around it (1.6 to 2.4 radii, plus one voxel of blur) by more than 3
times the noise of a single voxel there, which follows from the camera's settings. A detector that finds every visible
cell and nothing else has the printed F1. Writes ``benchmarks/results/cleared_phantom.*``.
"""

import argparse
import functools
import itertools
import platform
import resource
import time

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d, grey_opening, maximum_filter, uniform_filter
from scipy.signal import oaconvolve
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree
from tables import markdown, written

from mrhdata.phantom import ClearedSettings, cleared

RADIUS, FINE = 6.0, 3.0
CROP = (96, 192, 192)
#: Widths across, voxels: those of specks, of cells (4 to 8 um of radius), of what is larger.
WIDTHS = (0.8, 1.2, 1.7, 2.4, 3.4)
LEVELS = 25


def pairs(truth, found, radius):
    """How many cells and detections can be paired one to one."""
    if not len(truth) or not len(found):
        return 0
    near = cKDTree(truth).sparse_distance_matrix(cKDTree(found), radius, output_type="coo_matrix")
    graph = csr_matrix((np.ones(near.nnz), (near.row, near.col)), shape=near.shape)
    return int((maximum_bipartite_matching(graph) >= 0).sum())


def f1(paired, cells, found):
    """Harmonic mean of precision and recall."""
    return 2 * paired / max(1, cells + found)


def raw(volume):
    """Counts over the camera's offset."""
    return volume.astype(np.float32) - ClearedSettings().offset


def levelled(volume):
    """Counts over their mean within some ten cells."""
    light = raw(volume)
    return light / np.maximum(gaussian_filter(light, 12.0), 20.0)


def top_hat(volume):
    """Each plane of `levelled` without what is wider than a cell."""
    light = levelled(volume)
    return light - grey_opening(light, (1, 13, 13))


def laplacian(light, width, optics):
    """Return the Laplacian of Gaussian, negated and normalised by the squared width; bright blobs are positive."""
    z, across = np.hypot(width, optics), width
    smooth = gaussian_filter1d(light, across, axis=2)
    curved = across**2 * gaussian_filter1d(light, across, axis=2, order=2)
    curved = gaussian_filter1d(curved, across, axis=1)
    curved += across**2 * gaussian_filter1d(smooth, across, axis=1, order=2)
    smooth = gaussian_filter1d(smooth, across, axis=1)
    curved = gaussian_filter1d(curved, z, axis=0)
    return -(curved + z**2 * gaussian_filter1d(smooth, z, axis=0, order=2))


def peaks(response, size):
    """Local maxima in a box of `size` voxels, and their heights, the highest first."""
    top = (response == maximum_filter(response, size)) & (response > 0)
    where = np.argwhere(top)
    height = response[top]
    order = np.argsort(-height)[: response.size // 700]
    return where[order], height[order]


def log_candidates(answers, chosen, size):
    """Maxima of the largest answer over some widths."""
    return peaks(functools.reduce(np.maximum, [answers[k] for k in chosen]), size)


def scale_candidates(answers, chosen, size):
    """Maxima over place and width, where the best width is among those chosen."""
    where, height = log_candidates(answers, list(answers), size)
    best = np.argmax([answer[tuple(where.T)] for answer in answers.values()], axis=0)
    kept = np.isin(best, chosen)
    return where[kept], height[kept]


def laplacians(light, which):
    """Return the responses of all widths."""
    settings = ClearedSettings()
    across, along = settings.psf_um[2] / settings.spacing_um, settings.psf_um[0] / settings.spacing_um
    return {k: laplacian(light, WIDTHS[k], np.sqrt(along**2 - across**2)) for k in which}


def correlation(template, light, _):
    """Normalised cross-correlation with the template."""
    kernel = template - template.mean()
    kernel /= np.linalg.norm(kernel)
    mean = uniform_filter(light, template.shape)
    square = uniform_filter(light**2, template.shape)
    spread = np.sqrt(np.maximum(square - mean**2, 0) * template.size)
    answer = oaconvolve(light, kernel[::-1, ::-1, ::-1], mode="same")
    return {0: (answer / np.maximum(spread, 1e-3)).astype(np.float32)}


def mean_cell(crops, half=(6, 5, 5)):
    """Return the mean cell of the training crops."""
    total, count = np.zeros([2 * h + 1 for h in half]), 0
    for light, cells in crops:
        for at in np.rint(cells).astype(int):
            box = tuple(slice(a - h, a + h + 1) for a, h in zip(at, half, strict=True))
            if min(b.start for b in box) >= 0 and light[box].shape == total.shape:
                patch = light[box] - light[box].mean()
                total, count = total + patch / np.linalg.norm(patch), count + 1
    return (total / count).astype(np.float32)


def crop(seed):
    """A part of a training brain, at low or high x in turn, and its cells."""
    brain = cleared(seed=seed)
    start = [64, 128 * (seed % 3), 320 * (seed % 2)]
    stop = [s + n for s, n in zip(start, CROP, strict=True)]
    part = brain.volume[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    return part.values, brain.cells_within(start, stop)[["z", "y", "x"]].to_numpy() - start


def best_level(candidates, truths):
    """Threshold of the best pooled F1, and that F1."""
    heights = np.sort(np.concatenate([height for _, height in candidates]))
    levels = np.quantile(heights, np.linspace(0, 0.998, LEVELS))
    found = []
    for level in levels:
        kept = [where[height >= level] for where, height in candidates]
        paired = sum(pairs(t, k, RADIUS) for t, k in zip(truths, kept, strict=True))
        found.append(f1(paired, sum(map(len, truths)), sum(map(len, kept))))
    return float(levels[np.argmax(found)]), float(max(found))


#: Which widths are tried together, by their place in `WIDTHS`.
TOGETHER = [(2,), (3,), (4,), (1, 2), (2, 3), (1, 2, 3)]
SIZES = (5, 9)


def detectors(template):
    """Return for each detector: preprocessing, response, search for candidates, and settings to choose from."""
    return {
        "LoG, counts": (raw, laplacians, log_candidates, TOGETHER),
        "LoG, counts, scale chosen": (raw, laplacians, scale_candidates, TOGETHER),
        "LoG, levelled": (levelled, laplacians, log_candidates, TOGETHER),
        "LoG, levelled, scale chosen": (levelled, laplacians, scale_candidates, TOGETHER),
        "LoG, top-hat": (top_hat, laplacians, log_candidates, TOGETHER),
        "template, levelled": (levelled, functools.partial(correlation, template), log_candidates, [(0,)]),
    }


def tuned(answers, truths, candidates, options):
    """The best settings on the training crops: F1, threshold, option, size of the neighbourhood."""
    tried = []
    for option, size in itertools.product(options, SIZES):
        level, score = best_level([candidates(a, option, size) for a in answers], truths)
        tried.append((score, level, option, size))
    return max(tried, key=lambda row: row[0])


def visible(volume, cells, settings):
    """Which cells stand out from their surroundings by 3 times the noise of a voxel."""
    out, reach = np.zeros(len(cells), bool), 14
    grid = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"))
    for n, row in enumerate(cells.itertuples()):
        at = np.rint([row.z, row.y, row.x]).astype(int)
        inside = [np.clip(a + g, 0, s - 1) for a, g, s in zip(at, grid, volume.shape, strict=True)]
        voxels = volume[tuple(inside)].astype(np.float32)
        blur = (settings.psf_um[0] / settings.spacing_um, 1.0, 1.0)
        size = row.radius_mm * 1e3 / settings.spacing_um
        away = np.sqrt(sum((g / np.hypot(size, b)) ** 2 for g, b in zip(grid, blur, strict=True)))
        around = np.median(voxels[(away > 1.6) & (away < 2.4)])
        electrons = (around - settings.offset) * settings.electrons_per_count
        noise = np.sqrt(max(electrons, 0) + settings.read_noise_e**2) / settings.electrons_per_count
        middle = voxels[reach - 1 : reach + 2, reach - 1 : reach + 2, reach - 1 : reach + 2].mean()
        out[n] = middle - around > 3 * noise
    return out


def made(seed):
    """A whole brain: voxels, cells, seconds."""
    start, brain = time.perf_counter(), cleared(seed=seed)
    volume = brain.volume.compute(scheduler="synchronous").values
    return volume, brain.points, time.perf_counter() - start


def floors(crops, truths, template, brains):
    """Each detector: chosen on the crops, scored on the whole brains; one preparation in memory at a time."""
    rows, asked = [], None
    for name, (prepare, ask, candidates, options) in detectors(template).items():
        if (prepare, ask) != asked:
            asked, answers = (prepare, ask), [ask(prepare(volume), range(len(WIDTHS))) for volume in crops]
        score, level, option, size = tuned(answers, truths, candidates, options)
        row = {"detector": name, "widths": [WIDTHS[k] for k in option] if ask is laplacians else "", "box": size}
        row |= {"threshold": level, "F1, training crops": score}
        rows.append(row | tested(brains, prepare, ask, candidates, (option, size, level)))
        print(rows[-1], flush=True)
    return rows


def tested(brains, prepare, ask, candidates, chosen):
    """Precision, recall and F1 of chosen settings on whole brains."""
    option, size, level = chosen
    which, scores = range(len(WIDTHS)) if candidates is scale_candidates else option, []
    for volume, cells, _ in brains:
        where, height = candidates(ask(prepare(volume), which), option, size)
        found, truth = where[height >= level], cells[["z", "y", "x"]].to_numpy()
        paired, close = (pairs(truth, found, radius) for radius in (RADIUS, FINE))
        scores.append(
            {
                "precision": paired / max(1, len(found)),
                "recall": paired / len(truth),
                "F1": f1(paired, len(truth), len(found)),
                "F1, 3 voxels": f1(close, len(truth), len(found)),
            }
        )
    return {key: [row[key] for row in scores] for key in scores[0]}


def seen(brains):
    """The oracle on each brain, and what its making took."""
    rows = []
    for seed, (volume, cells, seconds) in brains.items():
        share = float(visible(volume, cells, ClearedSettings()).mean())
        rows.append(
            {
                "seed": seed,
                "cells": len(cells),
                "visible": share,
                "oracle F1": 2 * share / (1 + share),
                "seconds": seconds,
            }
        )
    return rows


def streamed(seed):
    """A quarter of a brain made block by block and thrown away: its seconds; the caller looks at memory."""
    start, brain = time.perf_counter(), cleared(seed=seed)
    for box in np.ndindex(2, 2, 2):
        corner = 128 * np.array(box)
        part = brain.volume[tuple(slice(a, a + 128) for a in corner)]
        part.compute(scheduler="synchronous")
    return time.perf_counter() - start


def main():
    """Print and write the figures."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--train", type=int, default=6, help="training brains, from seed 0")
    words.add_argument("--test", type=int, default=2, help="held-out brains, from seed 6")
    asked = words.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    blocks = {"seconds": streamed(6), "MiB before": before}
    blocks["MiB at most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    crops, truths = zip(*[crop(seed) for seed in range(asked.train)], strict=True)
    template = mean_cell([(levelled(volume), truth) for volume, truth in zip(crops, truths, strict=True)])
    brains = {seed: made(seed) for seed in range(6, 6 + asked.test)}
    rows, oracle = floors(crops, truths, template, list(brains.values())), seen(brains)
    counts = [len(cleared(seed=seed).cells) for seed in range(8)]
    machine = f"Python {platform.python_version()}, NumPy {np.__version__}, one thread"
    parts = [
        "# The cleared phantom: what classical detectors reach, and what can be seen",
        f"{len(crops)} training crops of {CROP} voxels with {sum(map(len, truths))} cells; held-out brains of "
        f"{next(iter(brains.values()))[0].shape}, seeds {list(brains)}. Two numbers are those of the two brains. "
        f"Cells of seeds 0 to 7: {counts}.",
        markdown(rows),
        "The oracle, and making a brain in memory:",
        markdown(oracle),
        f"A quarter of seed 6 in blocks of 128^3, none kept: {blocks['seconds']:.1f} s; memory rose from "
        f"{before:.0f} to {blocks['MiB at most']:.0f} MiB. {machine}.",
    ]
    written("cleared_phantom", parts, {"floors": rows, "oracle": oracle, "cells": counts, "blocks": blocks})


if __name__ == "__main__":
    main()
