"""What to remove: pruning plans, budgets, and residual blocks that are removed whole."""
