"""What shall leave: pruning plans, budgets, and residual blocks that leave as a whole."""
