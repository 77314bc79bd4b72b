// A two-layer perceptron at the level of nn, with seeded weights: nothing else is needed to compile and run it.
//
//   neuron-run examples/mlp.mlir                                                values, in float32
//   neuron-opt examples/mlp.mlir -p nn-fuse,nn-cast                             what the machine is given to compute
//   neuron-opt examples/mlp.mlir -p 'neuron{cores=2}' -o build/mlp.final.mlir   engine streams
//   neuron-run build/mlp.final.mlir                                             values, races, and the clock
func.func @main(%x: tensor<64x256xf32> {nn.name = "x"}) -> (tensor<64x10xf32> {nn.name = "probabilities"}) {
  %w1 = nn.weight "w1" seeded<1> : tensor<256x512xf32>
  %b1 = nn.weight "b1" seeded<2> : tensor<512xf32>
  %w2 = nn.weight "w2" seeded<3> : tensor<512x10xf32>
  %0 = nn.matmul %x, %w1 : (tensor<64x256xf32>, tensor<256x512xf32>) -> tensor<64x512xf32> loc("hidden")
  %1 = nn.add %0, %b1 : tensor<64x512xf32>, tensor<512xf32> loc("hidden")
  %2 = nn.relu %1 : tensor<64x512xf32> loc("hidden")
  %3 = nn.matmul %2, %w2 : (tensor<64x512xf32>, tensor<512x10xf32>) -> tensor<64x10xf32> loc("classes")
  %4 = nn.softmax %3 axis 1 : (tensor<64x10xf32>) -> tensor<64x10xf32> loc("classes")
  func.return %4 : tensor<64x10xf32>
}
