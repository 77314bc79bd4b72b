// RUN: neuron-opt %s -p 'canonicalize, cse' --validate-each --print-ir-after-change 2>&1 | filecheck %s
// RUN: neuron-opt %s -p 'canonicalize,cse,dce' --timing --statistics -o %t.mlir 2>&1 | filecheck %s --check-prefix=TIMING
// RUN: neuron-opt %t.mlir | filecheck %s --check-prefix=OUTPUT
// RUN: xdsl-opt %s -p cse | filecheck %s --check-prefix=OUTPUT

// A dump for the pass that changes something, none for the one that does not, then the result.
// CHECK-NOT: IR Dump After canonicalize
// CHECK: // -----// IR Dump After cse //----- //
// CHECK: nn.exp
// CHECK-NOT: nn.exp
// CHECK: func.func @main
// CHECK: nn.exp
// CHECK-NOT: nn.exp

// TIMING: Execution time report
// TIMING: parse
// TIMING-NEXT: (verify)
// TIMING-NEXT: canonicalize
// TIMING-NEXT: (verify)
// TIMING-NEXT: cse
// TIMING-NEXT: (verify)
// TIMING-NEXT: dce
// TIMING-NEXT: (verify)
// TIMING-NEXT: print
// TIMING-NEXT: Rest
// TIMING-NEXT: Total
// TIMING: Pass statistics report

// OUTPUT: nn.exp
// OUTPUT-NEXT: nn.add %0, %0

func.func @main(%x: tensor<2x3xf32>) -> tensor<2x3xf32> {
  %0 = nn.exp %x : tensor<2x3xf32>
  %1 = nn.exp %x : tensor<2x3xf32>
  %2 = nn.add %0, %1 : tensor<2x3xf32>, tensor<2x3xf32>
  func.return %2 : tensor<2x3xf32>
}
