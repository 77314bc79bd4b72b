"""Helpers on IR that belong to no dialect: dominance, locations, the machine attribute."""
