"""layergraft's launcher and sweeper, found by Hydra under this name."""
