"""layergraft: load a layer trained on its own into a multi-layer ResNet, and measure what that does."""
