"""Generators of networks with seeded weights, for tests, benchmarks and the demo.

- `neuron_mlir.models.catalogue`: ResNet-50, YOLOv3, VGG-16, U-Net and DLRM, layer by layer, of any size.
- `neuron_mlir.models.bert`: BERT of any size as an op-level graph.
- `neuron_mlir.models.light`: the nine networks that the `onnx` package ships without weights.

`python -m neuron_mlir.models --help` writes them to files.
"""
