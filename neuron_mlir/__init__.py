"""Neuron MLIR: trained networks, lowered through three dialects to a simulated AWS Inferentia."""

__version__ = "0.1.0"
