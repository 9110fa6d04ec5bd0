from . import (
    api,
    figures,
    leaderboard,
    machine,
    manifest,
    methods,
    publish,
    runner,
    scores,
    subjects,
    tasks,
)
from .api import METHODS, FittedMethod, TrainingData, method
from .leaderboard import sections, standings
from .runner import Bench, run_bench
from .tasks import Task, read_task

__all__ = [
    "METHODS",
    "Bench",
    "FittedMethod",
    "Task",
    "TrainingData",
    "api",
    "figures",
    "leaderboard",
    "machine",
    "manifest",
    "method",
    "methods",
    "publish",
    "read_task",
    "run_bench",
    "runner",
    "scores",
    "sections",
    "standings",
    "subjects",
    "tasks",
]
