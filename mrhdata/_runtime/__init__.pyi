from . import (
    atomic,
    html,
    memory,
    progress,
    threads,
)

__all__ = [
    "atomic",
    "html",
    "memory",
    "progress",
    "threads",
]
