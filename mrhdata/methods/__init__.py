"""The published systems as recipes: which samples, which network, which training values.

``mrhnet``: multi-contrast MRI to virtual histology. ``tissue2d``: tissue of T1w images. ``dgm``: deep grey matter on
QSM. ``segmentation``: what the latter two share. ``em``: restoration of electron microscopy.
"""
