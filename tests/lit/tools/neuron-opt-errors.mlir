// RUN: not neuron-opt %s -p no-such-pass 2>&1 | filecheck %s --check-prefix=PASS
// RUN: not neuron-opt %s 2>&1 | filecheck %s --check-prefix=ORDER
// RUN: not neuron-opt %s --disable-verify -p cse -o %t/no/such/directory 2>&1 | filecheck %s --check-prefix=OUTPUT
// RUN: neuron-opt %s --disable-verify | filecheck %s --check-prefix=DISABLED

// PASS: error: there is no pass named 'no-such-pass'
// PASS-NOT: Traceback

// ORDER: error: invalid IR: operand #0 (%late) of 'nn.exp', the result of 'nn.neg', does not dominate this use [at 'nn.exp', "second"]
// ORDER-NEXT: %{{.*}} = nn.exp
// ORDER-NOT: Traceback

// OUTPUT: error: output '{{.*}}' is in a directory that does not exist; try: mkdir -p

// DISABLED: nn.exp
// DISABLED-NEXT: nn.neg

func.func @main(%x: tensor<2x3xf32>) -> tensor<2x3xf32> {
  %0 = nn.exp %late : tensor<2x3xf32> loc("second")
  %late = nn.neg %x : tensor<2x3xf32> loc("first")
  func.return %0 : tensor<2x3xf32>
}
