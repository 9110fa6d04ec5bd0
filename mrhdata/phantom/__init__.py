"""Digital brains of known truth, one kind per file.

``mouse``: tissue fractions, multi-contrast MRI and histology.
"""

from mrhdata.phantom.mouse import TISSUES, Protocol, directions, mouse_brain

__all__ = ["TISSUES", "Protocol", "directions", "mouse_brain"]
