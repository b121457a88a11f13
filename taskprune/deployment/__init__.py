"""How a model runs where it will run."""
