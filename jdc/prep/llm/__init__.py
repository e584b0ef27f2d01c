"""Language models as operators: prompts, answers, a cache, budgets, servers and checkpoints."""
