"""Reductions inside a vision tower.

`tower` cuts the layers open and is the same for all; `rows`, `cells` and `packed` say how a tower lays out patches.
"""
