"""One benchmark for all methods: tasks as data files, fixed voxels and blocks, scores with intervals, and costs.

```
tasks/*.toml --tasks--> Task --subjects--> volumes --manifest--> training voxels and scored blocks, checked for leaks
                                                            |
report <--leaderboard-- results.jsonl <--runner-- method --predictions--> scores
                              |
                              +--publish--> benchmarks/results/bench.jsonl, benchmarks/RESULTS.md
```
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
