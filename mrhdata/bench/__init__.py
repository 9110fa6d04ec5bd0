"""One benchmark for every method: tasks as data, fixed voxels and blocks, scores with intervals, costs, a page.

```
tasks/*.toml --tasks--> Task --subjects--> volumes --manifest--> training voxels, scored blocks; no leak
                                                            |
   page, table <--leaderboard-- results.jsonl <--runner-- method --predictions--> scores
```
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
