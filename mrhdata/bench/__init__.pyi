from . import (
    api,
    figures,
    leaderboard,
    manifest,
    methods,
    runner,
    scores,
    subjects,
    tasks,
)
from .api import METHODS, Fitted, Given, Subject, method
from .leaderboard import sections, standings
from .runner import Bench, bench
from .tasks import Task, read_task

__all__ = [
    "METHODS",
    "Bench",
    "Fitted",
    "Given",
    "Subject",
    "Task",
    "api",
    "bench",
    "figures",
    "leaderboard",
    "manifest",
    "method",
    "methods",
    "read_task",
    "runner",
    "scores",
    "sections",
    "standings",
    "subjects",
    "tasks",
]
