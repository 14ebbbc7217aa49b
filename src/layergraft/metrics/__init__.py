"""What is measured: losses and figures of a task, distances between sets of features."""
