"""What a strategy may look at: statistics of attention at one place in a model."""
