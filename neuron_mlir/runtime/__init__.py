"""The compiled artifact, and the driver that makes one from a model.

- `neuron_mlir.runtime.artifact`: the file format, reading and writing (docs/artifact.md).
- `neuron_mlir.runtime.package`: from a module and its weights to an artifact.
- `neuron_mlir.runtime.compiler`: from a model file to an artifact, phase by phase.

Nothing is imported here, so that a tool loads only what it uses.
"""
