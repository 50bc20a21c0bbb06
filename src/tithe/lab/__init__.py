"""Tools built on the core: training, evaluation, judging, response tiers, heads, experiments, speed."""
