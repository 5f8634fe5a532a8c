"""Which layers reduce, and to how many: plans, presets, FLOPs, budgets."""
