"""Reductions inside a language model, with its cache, masks and positions."""
