"""What a method is: tokens, maps, strategies, their registry. Pure tensors, no model."""
