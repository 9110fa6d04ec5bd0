"""One benchmark for every method: tasks as data, fixed voxels and blocks, scores with intervals, costs, a page.

```
tasks/*.toml --tasks--> Task --subjects--> volumes --manifest--> what is learned from, what is scored; no leak
                                                            |
   page, table <--scoreboard-- results.jsonl <--running-- method --answers--> judging
```
"""

from mrhdata.harness.running import Bench, bench
from mrhdata.harness.scoreboard import sections, standings
from mrhdata.harness.tasks import Task, read_task

__all__ = ["Bench", "Task", "bench", "read_task", "sections", "standings"]
