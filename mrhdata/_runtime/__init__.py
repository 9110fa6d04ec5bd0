"""What every long run needs: complete files, budgets of memory, progress, threads."""
