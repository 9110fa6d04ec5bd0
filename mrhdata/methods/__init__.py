"""The published systems as recipes: which samples, which network, which training values.

``mrhnet``: multi-contrast MRI to virtual histology.
"""
