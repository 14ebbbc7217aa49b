"""Runs: one assembled and executed (`run`), many planned and shared out among workers (`sweep`, `pool`)."""
