"""What stands on the core: training, evaluation, judging, response tiers, heads, experiments, speed."""
