"""The front door: `prune`, `compress`, `distill`, `drop_task`, and the steps they are made of."""
