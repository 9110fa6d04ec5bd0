"""The exceptions that users can catch. All derive from :class:`MrhdataError`."""

from __future__ import annotations

from typing import Any


class MrhdataError(Exception):
    """Something the user can put right; its message says how."""


class ParameterError(MrhdataError, ValueError):
    """An argument has a value that it cannot have."""


class FormatError(MrhdataError, OSError):
    """A file is missing, damaged, of an unknown format, or may not be written."""


class GridError(MrhdataError, ValueError):
    """Shapes, spacings, affines or world spaces do not fit together."""


class DataError(MrhdataError, ValueError):
    """Values that cannot be used: not finite, an empty mask, too few rows."""


class UnfamiliarError(DataError):
    """A volume is not of the kind that a network was made for.

    ``quality`` has the predicted Dice as the JSON of a segmentation has it, or is None.
    """

    quality: dict[str, Any] | None = None


class CatalogError(MrhdataError, ValueError):
    """A catalogue is malformed, unsafe, or has no such entry."""


class NameMissingError(CatalogError, KeyError):
    """A group has no volume of that name; code that catches ``KeyError`` catches it."""

    # KeyError puts its message in quotes.
    __str__ = Exception.__str__


class ModelError(MrhdataError, ValueError):
    """A model is unknown, damaged, or does not fit the inputs it is given."""
