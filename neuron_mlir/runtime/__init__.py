"""The compiled artifact, the driver that makes one from a model, and what loads and calls it.

- `neuron_mlir.runtime.artifact`: the file format, reading and writing (docs/artifact.md).
- `neuron_mlir.runtime.package`: from a module and its weights to an artifact.
- `neuron_mlir.runtime.compiler`: from a model file to an artifact, phase by phase.
- `neuron_mlir.runtime.api`: `load` and `compile`, which give a `model.Model` on an `instance.Instance`
  (docs/runtime.md).
- `neuron_mlir.runtime.batching`, `inputs`, `limits`, `status`: dynamic batching, checks, return codes.

Nothing is imported here, so that a tool loads only what it uses.
"""
