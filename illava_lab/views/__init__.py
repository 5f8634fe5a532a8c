"""Plots and pictures: plain functions that return figures."""
