"""Scores: numbers in, numbers out. Every score is ``f(truth, prediction, ...)``, NumPy and SciPy only.

``ranking``: ROC curves and AUC. ``image``: agreement of values and pictures. ``intervals``: block bootstrap.
``cells``: detections against cells.
"""
