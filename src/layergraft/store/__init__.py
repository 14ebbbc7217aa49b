"""What is on disk: records of runs, plans of sweeps, files that are there whole or not at all, leases. Imports no torch."""
