"""What users call: load, trace, plan, prune, repair, train, and searches over these."""
