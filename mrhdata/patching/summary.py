"""Reports on a set of patches: the cost of one pass before training, and statistics of a sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mrhdata._runtime import html
from mrhdata.patching.order import LANES
from mrhdata.patching.patch_set import PatchSet
from mrhdata.patching.plan import Plan
from mrhdata.volume.box import Box
from mrhdata.volume.construct import PLANES, SPATIAL
from mrhdata.volume.grid import length

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Bins along the longest axis of a volume, in which coverage is counted.
_BINS = 64
#: Advice is given if a chunk is decoded more often than this in one pass.
_MANY_DECODES = 2.0
#: Advice is given if one patch touches more chunks than this.
_MANY_CHUNKS_PER_PATCH = 64
#: Most voxels along an axis, boxes, and decoded bytes of a drawing in a notebook.
_MAX_SHOWN_VOXELS = 512
_MAX_SHOWN_BOXES = 60
_MAX_SHOWN_BYTES = 64_000_000


@dataclass(frozen=True)
class CostReport:
    """Cost of one pass over patches.

    Attributes
    ----------
    patches, subjects, batch_size : int
    delivered_bytes : int
        Bytes of all tensors, float32.
    chunks : int
        Number of stored chunks (or other units of reading) that patches touch.
    decoded_bytes : int
        Bytes decoded in one planned pass.
    naive_bytes : int
        Bytes decoded if every patch reads all chunks that it touches.
    needed_bytes, memory : int
        Peak bytes in memory, batches included, and the budget.
    in_memory : bool
        Everything stays in memory after the first pass.
    advice : list of str
    """

    patches: int
    subjects: int
    batch_size: int
    delivered_bytes: int
    chunks: int
    chunk_bytes: int
    decoded_bytes: int
    naive_bytes: int
    needed_bytes: int
    memory: int
    in_memory: bool
    advice: list[str] = field(default_factory=list)

    @property
    def decodes(self) -> float:
        """Mean number of times that a chunk is decoded in one pass."""
        return self.decoded_bytes / max(1, self.chunk_bytes)

    def __str__(self) -> str:
        lines = [
            f"{self.patches:,} patches of {self.subjects} subject{'s' if self.subjects > 1 else ''}, "
            f"{_format_bytes(self.delivered_bytes)} in batches of {self.batch_size}",
            f"{self.chunks:,} chunks, {_format_bytes(self.chunk_bytes)}, are decoded {self.decodes:.2f} times in a pass"
            + (", then stay in memory" if self.in_memory else ""),
            f"reading patch by patch would decode {_format_bytes(self.naive_bytes)}, "
            f"{self.naive_bytes / max(1, self.decoded_bytes):.1f} times as much",
            f"at most {_format_bytes(self.needed_bytes)} of {_format_bytes(self.memory)} are in memory at a time",
        ]
        return "\n".join([*lines, *(f"advice: {a}" for a in self.advice)])

    __repr__ = __str__


def explained(patches: PatchSet, batch_size: int) -> CostReport:
    """Return the cost of one pass; no voxel is read."""
    plan = patches.plan(batch_size)
    loads = plan.loads(plan.indices(True, 0, 0, batch_size), batch_size)
    touched = np.unique(loads.tile)
    # Tiles of volumes in memory are views of 0 bytes: they are not decoded.
    naive = sum(int(plan.sizes(tiles).sum()) for tiles in plan.tiles_by_patch())
    report = CostReport(
        patches=len(patches),
        subjects=len(np.unique(patches.subject)),
        batch_size=batch_size,
        delivered_bytes=patches.batch_bytes(len(patches)),
        chunks=len(touched),
        chunk_bytes=int(plan.sizes(touched).sum()),
        decoded_bytes=int(loads.size.sum()),
        naive_bytes=naive,
        needed_bytes=loads.needed + patches.memory - plan.budget,
        memory=patches.memory,
        in_memory=plan.in_memory,
    )
    report.advice.extend(_advice(patches, plan, report))
    return report


def _advice(patches: PatchSet, plan: Plan, report: CostReport) -> list[str]:
    lines = []
    for source in patches.sources[0]:
        slow = source.slow
        if slow is not None:
            lines.append(f"{', '.join(source.channels[:3])}: {slow}; convert it to OME-Zarr with mrhdata.convert")
            continue
        tile_bytes = int(np.prod(source.tile)) * source.voxel_bytes
        touched_chunks = int(np.prod([-(-n // c) for n, c in zip(source.shape, source.chunk, strict=True)]))
        suitable = tuple(max(16, min(128, 1 << (2 * n - 1).bit_length() - 1)) for n in source.shape)
        if plan.mixed.lanes < min(LANES, len(plan.table)):
            lines.append(
                f"chunks of {source.chunk} voxels ({_format_bytes(tile_bytes)}) allow batches from {plan.mixed.lanes} "
                f"places of a volume within {_format_bytes(plan.budget)}, not {LANES}; chunks of about {suitable} suit "
                f"patches of {source.shape}"
            )
        elif touched_chunks > _MANY_CHUNKS_PER_PATCH:
            lines.append(
                f"a patch of {source.shape} touches {touched_chunks} chunks of {source.chunk} or more; chunks of about "
                f"{suitable} suit it"
            )
    if report.decodes > _MANY_DECODES and not lines:
        lines.append(f"more memory, such as {_format_bytes(2 * patches.memory)}, would reduce decoding")
    return lines


@dataclass(frozen=True)
class SampleReport:
    """Statistics of a sample of patches, in the order of an epoch.

    Attributes
    ----------
    patches : int
    coverage : float
        Fraction of the volumes' bins that hold the centre of a patch of the whole set.
    classes : dict of int to float
        Fraction of each class, of patches if the sampler draws by class, else of the voxels of a label target.
    mean, sd : dict of str to float
        Mean and standard deviation of each channel.
    drift : dict of str to float
        Variance of the batch means, divided by the variance expected of random batches. It is 1 if batches are as
        mixed as by shuffling, and larger if neighbouring patches share a batch.
    """

    patches: int
    coverage: float
    classes: dict[int, float]
    mean: dict[str, float]
    sd: dict[str, float]
    drift: dict[str, float]

    def __str__(self) -> str:
        lines = [f"{self.patches:,} patches sampled; centres in {self.coverage:.1%} of the volume's bins"]
        if self.classes:
            lines.append("classes: " + ", ".join(f"{c} {share:.1%}" for c, share in self.classes.items()))
        lines += [
            f"{name}: {self.mean[name]:.4g} +- {self.sd[name]:.4g}, drift {self.drift[name]:.2f}" for name in self.mean
        ]
        return "\n".join(lines)

    __repr__ = __str__


def diagnosed(patches: PatchSet, n: int, batch_size: int, seed: int) -> SampleReport:
    """Compute statistics of the first `n` patches of an epoch."""
    means: list[Any] = []
    squares: list[Any] = []
    seen: list[Any] = []
    counts: dict[int, int] = {}
    labels = _label_tensor(patches)
    for indices, arrays in patches.batches(batch_size, seed=seed):
        values = arrays[0].astype(np.float64)
        means.append(values.mean(axis=(2, 3, 4)))
        squares.append((values**2).mean(axis=(2, 3, 4)))
        seen.append(indices)
        if labels is not None and patches.classes is None:
            for value, count in zip(*np.unique(arrays[labels], return_counts=True), strict=True):
                counts[int(value)] = counts.get(int(value), 0) + int(count)
        if sum(map(len, seen)) >= n:
            break
    if patches.classes is not None:
        names, numbers = np.unique(patches.classes[np.concatenate(seen)], return_counts=True)
        counts = dict(zip(names.tolist(), numbers.tolist(), strict=True))
    patch_means = np.concatenate(means)
    mean = patch_means.mean(axis=0)
    sd = np.sqrt(np.maximum(0, np.concatenate(squares).mean(axis=0) - mean**2))
    full = [m.mean(axis=0) for m in means if len(m) == batch_size]
    between = np.var(full, axis=0, ddof=1) if len(full) > 1 else np.full(len(mean), np.nan)
    expected = patch_means.var(axis=0) / batch_size
    drift = np.divide(between, expected, out=np.ones_like(mean), where=expected > 0)
    total = sum(counts.values())
    return SampleReport(
        len(patch_means),
        _coverage(patches),
        {name: count / total for name, count in sorted(counts.items())},
        *(dict(zip(patches.channels, v.tolist(), strict=False)) for v in (mean, sd, drift)),
    )


def _label_tensor(patches: PatchSet) -> int | None:
    """Return the number of the first tensor of labels, or None."""
    return next((i for i, source in enumerate(patches.sources[0]) if source.labels), None)


def _coverage(patches: PatchSet) -> float:
    """Return the fraction of bins of all subjects that hold the centre of a patch."""
    filled = bins = 0
    for number, sources in enumerate(patches.sources):
        shape = np.array(sources[0].grid.shape)
        step = np.maximum(1, -(-shape.max() // _BINS))
        # A bin is at least as large as a patch.
        step = np.maximum(step, patches.shape)
        centres = patches.positions[patches.subject == number] + (np.array(patches.shape) - 1) // 2
        filled += len(np.unique(np.clip(centres, 0, shape - 1) // step, axis=0))
        bins += int(np.prod(-(-shape // step)))
    return filled / bins


def plotted(patches: PatchSet, subject: int, n: int, seed: int) -> Figure:
    """Draw boxes of patches over the middle slices of a subject's first volume."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    source = patches.sources[subject][0]
    shape = np.array(source.grid.shape)
    rng = np.random.default_rng(seed)
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.5), layout="constrained")
    for fixed, ax in enumerate(axes):
        plane, crossing = _middle_plane(patches, subject, fixed)
        low, high = np.zeros(3, dtype=np.int64), shape.copy()
        low[fixed], high[fixed] = plane, plane + 1
        image = source.voxels(Box.of(low, high))[0].take(0, axis=fixed)
        window = np.percentile(image, [1, 99])
        up, across = (a for a in range(3) if a != fixed)
        ax.imshow(image, cmap="gray", origin="lower", vmin=window[0], vmax=window[1], interpolation="nearest")
        for index in rng.choice(crossing, min(n, len(crossing)), replace=False):
            start = patches.positions[index]
            color = "tab:orange" if patches.classes is None else f"C{int(patches.classes[index]) % 10}"
            corner = (start[across] - 0.5, start[up] - 0.5)
            ax.add_patch(Rectangle(corner, patches.shape[across], patches.shape[up], fill=False, color=color, lw=1))
        ax.set_title(
            f"{SPATIAL[fixed]} = {plane}: {len(crossing)} of {(patches.subject == subject).sum()} patches", fontsize=10
        )
        ax.set_xlabel(f"{SPATIAL[across]} (voxels)")
        ax.set_ylabel(f"{SPATIAL[up]} (voxels)")
        ax.set_aspect(source.grid.spacing[up] / source.grid.spacing[across])
    return figure


def _middle_plane(patches: PatchSet, subject: int, fixed: int) -> tuple[int, Any]:
    """Return the median plane of a subject's patches, and the patches that cross it, by index."""
    indices = np.flatnonzero(patches.subject == subject)
    starts = patches.positions[indices][:, fixed]
    last = patches.sources[subject][0].grid.shape[fixed] - 1
    plane = int(np.clip(np.median(starts) + patches.shape[fixed] // 2, 0, last))
    return plane, indices[(starts <= plane) & (starts + patches.shape[fixed] > plane)]


def as_html(patches: PatchSet) -> str:
    """Return a summary for notebooks, with patches of the first subject over a part of one plane.

    If more than `_MAX_SHOWN_BYTES` of voxels would have to be decoded, only boxes are drawn.
    """
    delivered = patches.batch_bytes(len(patches))
    facts: dict[str, Any] = {
        "subjects": f"{len(np.unique(patches.subject)):,}",
        **{f"tensor {name}": f"{shape} as C, z, y, x" for name, shape in patches.tensor_shapes.items()},
        "channels": ", ".join(patches.channels[:6])
        + (f" and {n} more" if (n := len(patches.channels) - 6) > 0 else ""),
        "voxel": " x ".join(length(float(s)) for s in patches.sources[0][0].grid.spacing),
        "all tensors": f"{_format_bytes(delivered)}, float32",
        "stored chunks": f"{len(patches.chunks):,}" + (", kept in memory" if patches.in_memory else ""),
        "memory": f"{_format_bytes(patches.memory)} at most",
    }
    caption, drawing = _draw_plane(patches)
    title = f"{len(patches):,} patches of {' x '.join(map(str, patches.shape))} voxels (z, y, x)"
    return html.panel(title, html.facts(facts), drawing, note=f"{caption}; .explain() reports the cost of a pass")


def _draw_plane(patches: PatchSet) -> tuple[str, str]:
    """Return a caption, and a drawing of boxes over a plane of the first subject, or over a part of a large plane."""
    # The first subject with patches: a part of a split leaves subjects out.
    subject = int(patches.subject.min())
    source = patches.sources[subject][0]
    fixed = 0 if patches.plane is None else PLANES[patches.plane]
    plane, crossing = _middle_plane(patches, subject, fixed)
    up, across = (a for a in range(3) if a != fixed)
    low, high = np.zeros(3, dtype=np.int64), np.array(source.grid.shape)
    low[fixed], high[fixed] = plane, plane + 1
    middle = np.median(patches.positions[crossing], axis=0) + np.array(patches.shape) // 2
    for axis in (up, across):
        start = int(np.clip(middle[axis] - _MAX_SHOWN_VOXELS // 2, 0, max(0, high[axis] - _MAX_SHOWN_VOXELS)))
        low[axis], high[axis] = start, min(high[axis], start + _MAX_SHOWN_VOXELS)
    # Whole chunks are decoded. A volume that is not read chunk by chunk may be decoded completely.
    touched = np.array(source.grid.shape) if source.slow else -(-high // source.chunk) * source.chunk - low
    readable = int(np.prod(touched)) * source.voxel_bytes <= _MAX_SHOWN_BYTES
    image = source.voxels(Box.of(low, high))[0].take(0, axis=fixed) if readable else None
    starts = patches.positions[crossing] - low
    within = ((starts >= 0) & (starts + patches.shape <= high - low))[:, [up, across]].all(axis=1)
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(within))[:_MAX_SHOWN_BOXES]
    boxes = np.column_stack(
        [starts[chosen][:, [up, across]], np.tile([patches.shape[up], patches.shape[across]], (len(chosen), 1))]
    )
    caption = (
        f"{len(chosen):,} of the {len(crossing):,} patches that cross {SPATIAL[fixed]} = {plane} of the first subject"
    )
    spacing = source.grid.spacing[[up, across]]
    return caption, html.picture(image, (high - low)[[up, across]], spacing, caption, boxes=boxes)


def _format_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
