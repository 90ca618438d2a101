"""The public workflow: load, trace, plan, prune, repair, train, and searches over these."""
