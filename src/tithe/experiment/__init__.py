"""Arms x budgets x seeds under one recipe, compared item by item, with a verdict."""
