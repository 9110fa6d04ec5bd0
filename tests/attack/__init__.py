"""Damaged and hostile files of every kind that the package reads."""
