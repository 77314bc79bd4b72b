"""Generators of networks with seeded weights, for tests, benchmarks and the demo.

- `neuron_mlir.models.light`: the nine networks that the `onnx` package ships without weights.
- `neuron_mlir.models.bert`: BERT of any size as an op-level graph.

`python -m neuron_mlir.models --help` writes them to files.
"""
