"""What a set of patches will cost, and what it holds: explained before training, diagnosed on a sample."""

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

#: Bins along the longest axis of the map of coverage.
_BINS = 64
#: Decodes of a chunk in one pass above which advice is given.
_MANY = 2.0
#: Chunks that one patch touches above which advice is given.
_PIECES = 64
#: Voxels along an axis, boxes, and decoded bytes that a notebook shows at most.
_SHOWN_VOXELS, _SHOWN_BOXES, _SHOWN_BYTES = 512, 60, 64_000_000


@dataclass(frozen=True)
class CostReport:
    """What one pass over patches costs.

    Attributes
    ----------
    patches, subjects, batch_size : int
    delivered_bytes : int
        Of all tensors, float32.
    chunks : int
        Stored chunks (or what else is read at once) that patches touch.
    decoded_bytes : int
        In one pass as planned.
    naive_bytes : int
        Where every patch would read all chunks that it touches.
    needed_bytes, memory : int
        Most that is held at one time, batches included, and the budget.
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
        """How often a chunk is decoded in one pass, on average."""
        return self.decoded_bytes / max(1, self.chunk_bytes)

    def __str__(self) -> str:
        lines = [
            f"{self.patches:,} patches of {self.subjects} subject{'s' if self.subjects > 1 else ''}, "
            f"{_size(self.delivered_bytes)} in batches of {self.batch_size}",
            f"{self.chunks:,} chunks, {_size(self.chunk_bytes)}, are decoded {self.decodes:.2f} times in a pass"
            + (", and never again" if self.in_memory else ""),
            f"reading patch by patch would decode {_size(self.naive_bytes)}, "
            f"{self.naive_bytes / max(1, self.decoded_bytes):.1f} times as much",
            f"at most {_size(self.needed_bytes)} of {_size(self.memory)} are held at one time",
        ]
        return "\n".join([*lines, *(f"advice: {a}" for a in self.advice)])

    __repr__ = __str__


def explained(patches: PatchSet, batch_size: int) -> CostReport:
    """What one pass costs; no voxel is read."""
    plan = patches.plan(batch_size)
    rows = plan.rows(True, 0, 0, batch_size)
    loads = plan.loads(rows, batch_size)
    touched = np.unique(loads.tile)
    # Tiles of volumes in memory are views: nothing is decoded.
    naive = sum(int(plan.sizes(tiles).sum()) for tiles in plan.tiles_by_row())
    found = CostReport(
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
    found.advice.extend(_advice(patches, plan, found))
    return found


def _advice(patches: PatchSet, plan: Plan, found: CostReport) -> list[str]:
    lines = []
    for stream in patches.sources[0]:
        slow = stream.slow
        if slow is not None:
            lines.append(f"{', '.join(stream.channels[:3])}: {slow}; convert it to OME-Zarr with mrhdata.convert")
            continue
        voxels = int(np.prod(stream.tile)) * stream.voxel_bytes
        pieces = int(np.prod([-(-n // c) for n, c in zip(stream.shape, stream.chunk, strict=True)]))
        wanted = [max(16, min(128, 1 << (2 * n - 1).bit_length() - 1)) for n in stream.shape]
        if plan.mixed.lanes < min(LANES, len(plan.table)):
            lines.append(
                f"chunks of {stream.chunk} voxels ({_size(voxels)}) leave room to mix {plan.mixed.lanes} places within "
                f"{_size(plan.budget)}, not {LANES}; chunks of about {tuple(wanted)} suit patches of {stream.shape}"
            )
        elif pieces > _PIECES:
            lines.append(
                f"a patch of {stream.shape} touches {pieces} chunks of {stream.chunk} or more; chunks of about "
                f"{tuple(wanted)} suit it"
            )
    if found.decodes > _MANY and not lines:
        lines.append(f"more memory would decode less: {_size(2 * patches.memory)}, say")
    return lines


@dataclass(frozen=True)
class SampleReport:
    """What a sample of patches holds, in the order in which they are handed out.

    Attributes
    ----------
    patches : int
    coverage : float
        Share of the volumes' bins that hold the centre of a patch of the whole set.
    classes : dict of int to float
        Share of each class: what patches were drawn for, or the voxels of a target of labels.
    mean, sd : dict of str to float
        Intensity of each channel.
    drift : dict of str to float
        Variance of the batch means over that of batches of patches at random: 1 where batches are as
        mixed as by shuffling, more where neighbouring patches share a batch.
    """

    patches: int
    coverage: float
    classes: dict[int, float]
    mean: dict[str, float]
    sd: dict[str, float]
    drift: dict[str, float]

    def __str__(self) -> str:
        lines = [f"{self.patches:,} patches looked at; centres in {self.coverage:.1%} of the volume's bins"]
        if self.classes:
            lines.append("classes: " + ", ".join(f"{c} {share:.1%}" for c, share in self.classes.items()))
        lines += [
            f"{name}: {self.mean[name]:.4g} +- {self.sd[name]:.4g}, drift {self.drift[name]:.2f}" for name in self.mean
        ]
        return "\n".join(lines)

    __repr__ = __str__


def diagnosed(patches: PatchSet, n: int, batch_size: int, seed: int) -> SampleReport:
    """Look at the first `n` patches of an epoch."""
    means: list[Any] = []
    squares: list[Any] = []
    rows_seen: list[Any] = []
    counts: dict[int, int] = {}
    labels = _labels(patches)
    for rows, parts in patches.batches(batch_size, seed=seed):
        values = parts[0].astype(np.float64)
        means.append(values.mean(axis=(2, 3, 4)))
        squares.append((values**2).mean(axis=(2, 3, 4)))
        rows_seen.append(rows)
        if labels is not None and patches.classes is None:
            for value, count in zip(*np.unique(parts[labels], return_counts=True), strict=True):
                counts[int(value)] = counts.get(int(value), 0) + int(count)
        if sum(map(len, rows_seen)) >= n:
            break
    if patches.classes is not None:
        names, numbers = np.unique(patches.classes[np.concatenate(rows_seen)], return_counts=True)
        counts = dict(zip(names.tolist(), numbers.tolist(), strict=True))
    every = np.concatenate(means)
    mean = every.mean(axis=0)
    spread = np.sqrt(np.maximum(0, np.concatenate(squares).mean(axis=0) - mean**2))
    full = [m.mean(axis=0) for m in means if len(m) == batch_size]
    between = np.var(full, axis=0, ddof=1) if len(full) > 1 else np.full(len(mean), np.nan)
    expected = every.var(axis=0) / batch_size
    drift = np.divide(between, expected, out=np.ones_like(mean), where=expected > 0)
    total = sum(counts.values())
    return SampleReport(
        len(every),
        _coverage(patches),
        {name: count / total for name, count in sorted(counts.items())},
        *(dict(zip(patches.channels, v.tolist(), strict=False)) for v in (mean, spread, drift)),
    )


def _labels(patches: PatchSet) -> int | None:
    """Number of the first tensor of whole numbers that stand for classes."""
    return next((i for i, stream in enumerate(patches.sources[0]) if stream.labels), None)


def _coverage(patches: PatchSet) -> float:
    """Share of bins of all subjects that hold the centre of a patch."""
    filled = bins = 0
    for number, streams in enumerate(patches.sources):
        shape = np.array(streams[0].grid.shape)
        step = np.maximum(1, -(-shape.max() // _BINS))
        # A bin is no smaller than a patch.
        step = np.maximum(step, patches.shape)
        centres = patches.positions[patches.subject == number] + (np.array(patches.shape) - 1) // 2
        filled += len(np.unique(np.clip(centres, 0, shape - 1) // step, axis=0))
        bins += int(np.prod(-(-shape // step)))
    return filled / bins


def plotted(patches: PatchSet, subject: int, n: int, seed: int) -> Figure:
    """Boxes of patches over the middle slices of a subject's first volume."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    stream = patches.sources[subject][0]
    shape = np.array(stream.grid.shape)
    rng = np.random.default_rng(seed)
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.5), layout="constrained")
    for fixed, ax in enumerate(axes):
        plane, crossing = _crossed(patches, subject, fixed)
        low, high = np.zeros(3, dtype=np.int64), shape.copy()
        low[fixed], high[fixed] = plane, plane + 1
        image = stream.voxels(Box.of(low, high))[0].take(0, axis=fixed)
        window = np.percentile(image, [1, 99])
        up, across = (a for a in range(3) if a != fixed)
        ax.imshow(image, cmap="gray", origin="lower", vmin=window[0], vmax=window[1], interpolation="nearest")
        for row in rng.choice(crossing, min(n, len(crossing)), replace=False):
            start = patches.positions[row]
            color = "tab:orange" if patches.classes is None else f"C{int(patches.classes[row]) % 10}"
            corner = (start[across] - 0.5, start[up] - 0.5)
            ax.add_patch(Rectangle(corner, patches.shape[across], patches.shape[up], fill=False, color=color, lw=1))
        ax.set_title(
            f"{SPATIAL[fixed]} = {plane}: {len(crossing)} of {(patches.subject == subject).sum()} patches", fontsize=10
        )
        ax.set_xlabel(f"{SPATIAL[across]} (voxels)")
        ax.set_ylabel(f"{SPATIAL[up]} (voxels)")
        ax.set_aspect(stream.grid.spacing[up] / stream.grid.spacing[across])
    return figure


def _crossed(patches: PatchSet, subject: int, fixed: int) -> tuple[int, Any]:
    """The plane in the middle of a subject's patches, so that there is something to see, and the rows that cross it."""
    rows = np.flatnonzero(patches.subject == subject)
    starts = patches.positions[rows][:, fixed]
    last = patches.sources[subject][0].grid.shape[fixed] - 1
    plane = int(np.clip(np.median(starts) + patches.shape[fixed] // 2, 0, last))
    return plane, rows[(starts <= plane) & (starts + patches.shape[fixed] > plane)]


def as_html(patches: PatchSet) -> str:
    """The plan, and patches of the first subject over a part of one plane, for notebooks.

    No more than `_SHOWN_BYTES` of voxels are decoded for it; where that does not do, boxes are shown alone.
    """
    delivered = patches.batch_bytes(len(patches))
    given: dict[str, Any] = {
        "subjects": f"{len(np.unique(patches.subject)):,}",
        **{f"tensor {name}": f"{width} as C, z, y, x" for name, width in patches.tensor_shapes.items()},
        "channels": ", ".join(patches.channels[:6])
        + (f" and {n} more" if (n := len(patches.channels) - 6) > 0 else ""),
        "voxel": " x ".join(length(float(s)) for s in patches.sources[0][0].grid.spacing),
        "all tensors": f"{_size(delivered)}, float32",
        "stored chunks": f"{len(patches.chunks):,}" + (", kept in memory" if patches.in_memory else ""),
        "memory": f"{_size(patches.memory)} at most",
    }
    plane, drawing = _over_plane(patches)
    title = f"{len(patches):,} patches of {' x '.join(map(str, patches.shape))} voxels (z, y, x)"
    return html.panel(title, html.facts(given), drawing, note=f"{plane}; .explain() says what a pass costs")


def _over_plane(patches: PatchSet) -> tuple[str, str]:
    """What is shown, and boxes over as much of a plane of the first subject as may be read."""
    # The first that has any: a part of a split leaves subjects out.
    shown = int(patches.subject.min())
    stream = patches.sources[shown][0]
    fixed = 0 if patches.plane is None else PLANES[patches.plane]
    plane, crossing = _crossed(patches, shown, fixed)
    up, across = (a for a in range(3) if a != fixed)
    low, high = np.zeros(3, dtype=np.int64), np.array(stream.grid.shape)
    low[fixed], high[fixed] = plane, plane + 1
    middle = np.median(patches.positions[crossing], axis=0) + np.array(patches.shape) // 2
    for axis in (up, across):
        start = int(np.clip(middle[axis] - _SHOWN_VOXELS // 2, 0, max(0, high[axis] - _SHOWN_VOXELS)))
        low[axis], high[axis] = start, min(high[axis], start + _SHOWN_VOXELS)
    # Whole chunks are decoded; of what is not read chunk by chunk, perhaps everything.
    touched = np.array(stream.grid.shape) if stream.slow else -(-high // stream.chunk) * stream.chunk - low
    readable = int(np.prod(touched)) * stream.voxel_bytes <= _SHOWN_BYTES
    image = stream.voxels(Box.of(low, high))[0].take(0, axis=fixed) if readable else None
    starts = patches.positions[crossing] - low
    within = ((starts >= 0) & (starts + patches.shape <= high - low))[:, [up, across]].all(axis=1)
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(within))[:_SHOWN_BOXES]
    boxes = np.column_stack(
        [starts[chosen][:, [up, across]], np.tile([patches.shape[up], patches.shape[across]], (len(chosen), 1))]
    )
    said = (
        f"{len(chosen):,} of the {len(crossing):,} patches that cross {SPATIAL[fixed]} = {plane} of the first subject"
    )
    spacing = stream.grid.spacing[[up, across]]
    return said, html.picture(image, (high - low)[[up, across]], spacing, said, boxes=boxes)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
