"""Training: a network, its data and a plan go in, a fitted network and its curves come out. Knows nothing of grafts."""
