"""Measurements of a federation's cost in memory and time, on real processes."""
