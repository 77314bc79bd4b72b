"""Passes on staged programs."""
