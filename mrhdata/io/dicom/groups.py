"""Elements of a plane: in the functional groups of its frame, in those of all frames, or directly in the file."""

from __future__ import annotations

from collections.abc import Callable

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

#: Element -> functional groups that hold it in multi-frame files, outermost first.
GROUPS: dict[str, tuple[str, ...]] = {
    "ImagePositionPatient": ("PlanePositionSequence",),
    "ImageOrientationPatient": ("PlaneOrientationSequence",),
    **dict.fromkeys(("PixelSpacing", "SpacingBetweenSlices", "SliceThickness"), ("PixelMeasuresSequence",)),
    **dict.fromkeys(("RescaleSlope", "RescaleIntercept"), ("PixelValueTransformationSequence",)),
    **dict.fromkeys(
        ("StackID", "TemporalPositionIndex", "FrameAcquisitionNumber", "FrameAcquisitionDateTime"),
        ("FrameContentSequence",),
    ),
    "EffectiveEchoTime": ("MREchoSequence",),
    "InversionTimes": ("MRModifierSequence",),
    "DiffusionBValue": ("MRDiffusionSequence",),
    "DiffusionGradientOrientation": ("MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
    "ComplexImageComponent": ("MRImageFrameTypeSequence",),
    "NominalCardiacTriggerDelayTime": ("CardiacSynchronizationSequence",),
    "ReferencedSegmentNumber": ("SegmentIdentificationSequence",),
}
_EMPTY = (None, "", b"")

#: Function that returns the data set with an element that is not empty, or None.
Find = Callable[[str], Dataset | None]


class Place:
    """A data set with the names of its elements; asking pydicom for each missing one takes most of the time."""

    def __init__(self, tags: Dataset) -> None:
        self._tags = tags
        self._names = {keyword_for_tag(tag) for tag in tags.keys()}  # noqa: SIM118 - without values

    def holder_of(self, keyword: str) -> Dataset | None:
        """Return the data set, or that of a functional group within it, that has an element."""
        inner: Dataset | None = self._tags
        for depth, name in enumerate(GROUPS.get(keyword, ())):
            if inner is None or (depth == 0 and name not in self._names):
                inner = None
                break
            sequence = inner.get(name)
            inner = sequence[0] if sequence else None
        if inner is not None and inner is not self._tags and inner.get(keyword) not in _EMPTY:
            return inner
        return self._tags if keyword in self._names and self._tags.get(keyword) not in _EMPTY else None


def finder(*places: Place) -> Find:
    """Return a function that finds an element in the first place that has it."""

    def find(keyword: str) -> Dataset | None:
        return next((holder for place in places if (holder := place.holder_of(keyword)) is not None), None)

    return find
