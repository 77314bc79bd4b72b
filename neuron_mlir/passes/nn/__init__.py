"""Passes on `nn`."""
