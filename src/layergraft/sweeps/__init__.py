"""Many runs: planned whole before the first starts, each done once, by workers here, on a Ray cluster or in SLURM jobs."""
