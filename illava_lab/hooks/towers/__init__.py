"""Reductions inside a vision tower, one file for each way in which towers lay out their patches."""
