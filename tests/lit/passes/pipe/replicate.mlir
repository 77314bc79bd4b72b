// RUN: neuron-opt %s -p pipe-replicate{copies=2} | filecheck %s --check-prefix=COPIES
// RUN: neuron-opt %s -p 'pipe-replicate{stage=s1 copies=3}' | filecheck %s --check-prefix=ONE
// RUN: neuron-opt %s -p pipe-replicate{cores=6} --statistics 2>&1 | filecheck %s --check-prefix=SPREAD
// RUN: neuron-opt %s -p 'pipe-replicate{stage=s1 copies=2},core-lower,core-allocate,core-schedule' --validate-each | filecheck %s --check-prefix=FINAL

// Whole copies: each on a chip of its own, as three stages and four cores to a chip leave one core over.
// COPIES: pipe.stage @s0 cores [0, 4] replicas (
// COPIES: pipe.stage @s1 cores [1, 5] replicas (
// COPIES: pipe.stage @s2 cores [2, 6] replicas (

// One stage: those behind it move up.
// ONE: pipe.stage @s0 cores [0] (
// ONE: pipe.stage @s1 cores [1, 2, 3] replicas (
// ONE: pipe.stage @s2 cores [4] (

// What the estimates ask for: 3 us of s1 over three cores, and 2 us of s2 over two.
// SPREAD: replication = #pipe.certificate<1000000.0, 1000000.0, "ps", "greedy, links and DRAM checked">, replication_reason = "s1 three times, s2 twice: 6 of 6 cores, from 3000000 to 1000000 ps per request"
// SPREAD: pipe.stage @s0 cores [0] (
// SPREAD: pipe.stage @s1 cores [1, 2, 3] replicas (
// SPREAD: pipe.stage @s2 cores [4, 5] replicas (
// SPREAD: (S) 3 stages - stages in the program
// SPREAD-NEXT: (S) 2 replicated - stages with more than one copy
// SPREAD-NEXT: (S) 6 cores - cores in use
// SPREAD-NEXT: (S) 1000000 bottleneck-ps - estimated time per request

// In memory form one ring holds the requests of both replicas, and each has its semaphores.
// FINAL: %x = pipe.ring "x" depth 2 on chip 0 at 0
// FINAL: %a = pipe.ring "a" depth 3 on chip 0 at
// FINAL-NEXT: %a_full = core.semaphore "a.full" on cores [1, 2]
// FINAL-NEXT: %a_credit = core.semaphore "a.credit" on core 0 by 2
// FINAL: pipe.stage @s0 cores [0] (
// FINAL: core.wait %{{a_credit_?[0-9]*}} >= (%r - 3) floordiv 2 + 1
// FINAL: core.wait %{{a_credit_?[0-9]*}} from 1 >= (%r - 4) floordiv 2 + 1
// FINAL: pipe.stage @s1 cores [1, 2] replicas (
// FINAL: pipe.run (%q, %i) {
// FINAL: core.wait %{{a_full_?[0-9]*}} >= %i + %q * 2 + 1
// FINAL: core.dma %a{{.*}}[(%q * 2 + %i) mod 3, 0, 0]
pipe.program @net {
  %x = pipe.input "x" : !pipe.stream<tensor<4x8xf32>>
  %a = pipe.stage @s0 cores [0] (%x) attributes {cost_ps = 1000000 : i64} {
  ^bb0(%v: tensor<4x8xf32>):
    %r = nn.relu %v : tensor<4x8xf32>
    pipe.yield %r : tensor<4x8xf32>
  } -> (!pipe.stream<tensor<4x8xf32>>)
  %b = pipe.stage @s1 cores [1] (%a) attributes {cost_ps = 3000000 : i64} {
  ^bb0(%v: tensor<4x8xf32>):
    %r = nn.abs %v : tensor<4x8xf32>
    pipe.yield %r : tensor<4x8xf32>
  } -> (!pipe.stream<tensor<4x8xf32>>)
  %c = pipe.stage @s2 cores [2] (%b) attributes {cost_ps = 2000000 : i64} {
  ^bb0(%v: tensor<4x8xf32>):
    %r = nn.neg %v : tensor<4x8xf32>
    pipe.yield %r : tensor<4x8xf32>
  } -> (!pipe.stream<tensor<4x8xf32>>)
  pipe.output "y", %c : !pipe.stream<tensor<4x8xf32>>
}
