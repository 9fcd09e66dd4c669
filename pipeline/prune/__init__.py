"""From statistics to a plan: the recipe's steps, their methods, allocations and compensations."""
