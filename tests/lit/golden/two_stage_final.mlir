// RUN: neuron-opt %s | filecheck %s
// RUN: neuron-opt %s | neuron-opt | filecheck %s

// The final form, written by hand: two stages of matmul -> relu on two cores, rings of two slots between host, core 0, core 1
// and host. Every request passes each ring once; credits hold a producer back while both slots of a ring are in use.

// CHECK-LABEL: pipe.program @two_stage
// CHECK: core.wait %{{.*}} >= %{{.*}} - 1
// CHECK: core.matmul %{{.*}}[0, %{{.*}} mod 2, 0] [64, 1, 512], %{{.*}}, %{{.*}}[0, %{{.*}} mod 2, 0] [128, 1, 512]
pipe.program @two_stage {
  %x = pipe.ring "x" depth 2 on chip 0 at 0 : memref<2x128x512xbf16, #core.dram>
  %x_full = core.semaphore "x.full" on core 0
  %x_credit = core.semaphore "x.credit"
  %h = pipe.ring "h" depth 2 on core 1 at 0 : memref<64x2x512xbf16, #core.sbuf>
  %h_full = core.semaphore "h.full" on core 1
  %h_credit = core.semaphore "h.credit" on core 0
  %y = pipe.ring "y" depth 2 on chip 0 at 262144 : memref<2x32x512xf32, #core.dram>
  %y_full = core.semaphore "y.full"
  %y_credit = core.semaphore "y.credit" on core 1

  pipe.input "x" to %x full %x_full credit %x_credit

  pipe.stage @s0 cores [0] (%x, %x_full, %x_credit, %h, %h_full, %h_credit) {
  ^bb0(%xr: memref<2x128x512xbf16, #core.dram>, %xf: !core.semaphore, %xc: !core.semaphore,
       %hr: memref<64x2x512xbf16, #core.sbuf>, %hf: !core.semaphore, %hc: !core.semaphore):
    %w0 = core.const "w0" {
      %0 = nn.weight "w0" seeded<1> : tensor<128x64xbf16>
      nn.yield %0 : tensor<128x64xbf16>
    } : memref<128x64xbf16, #core.dram>
    %w = core.alloc "w" at 0 : memref<128x64xbf16, #core.sbuf>
    %xs = core.alloc "xs" at 128 : memref<128x2x512xbf16, #core.sbuf>
    %hs = core.alloc "hs" at 2176 : memref<64x2x512xbf16, #core.sbuf>
    %acc = core.alloc "acc" at 0 : memref<64x2x512xf32, #core.psum>
    %in = core.semaphore "in"
    %mm = core.semaphore "mm"
    %act = core.semaphore "act"
    %out = core.semaphore "out"
    pipe.load {
      core.engine dma0 {
        core.dma %w0 -> %w
      }
    }
    pipe.run (%r) {
      core.engine dma0 {
        core.wait %xf >= %r + 1
        core.wait %mm >= %r - 1
        core.dma %xr[%r mod 2, 0, 0] [1, 128, 512] -> %xs[0, %r mod 2, 0] [128, 1, 512]
        core.signal %in
        core.signal %xc
      }
      core.engine tensor {
        core.wait %in >= %r + 1
        core.wait %act >= %r - 1
        core.matmul %acc[0, %r mod 2, 0] [64, 1, 512], %w, %xs[0, %r mod 2, 0] [128, 1, 512]
        core.signal %mm
      }
      core.engine scalar {
        core.wait %mm >= %r + 1
        core.wait %out >= %r - 1
        core.activation relu %hs[0, %r mod 2, 0] [64, 1, 512], %acc[0, %r mod 2, 0] [64, 1, 512]
        core.signal %act
      }
      core.engine dma1 {
        core.wait %act >= %r + 1
        core.wait %hc >= %r - 1
        core.dma %hs[0, %r mod 2, 0] [64, 1, 512] -> %hr[0, %r mod 2, 0] [64, 1, 512]
        core.signal %out
        core.signal %hf
      }
    }
  }

  pipe.stage @s1 cores [1] (%h, %h_full, %h_credit, %y, %y_full, %y_credit) {
  ^bb0(%hr: memref<64x2x512xbf16, #core.sbuf>, %hf: !core.semaphore, %hc: !core.semaphore,
       %yr: memref<2x32x512xf32, #core.dram>, %yf: !core.semaphore, %yc: !core.semaphore):
    %w1 = core.const "w1" {
      %0 = nn.weight "w1" seeded<2> : tensor<64x32xbf16>
      nn.yield %0 : tensor<64x32xbf16>
    } : memref<64x32xbf16, #core.dram>
    %w = core.alloc "w" at 2048 : memref<64x32xbf16, #core.sbuf>
    %ys = core.alloc "ys" at 2112 : memref<32x2x512xf32, #core.sbuf>
    %acc = core.alloc "acc" at 0 : memref<32x2x512xf32, #core.psum>
    %mm = core.semaphore "mm"
    %act = core.semaphore "act"
    %out = core.semaphore "out"
    pipe.load {
      core.engine dma0 {
        core.dma %w1 -> %w
      }
    }
    pipe.run (%r) {
      core.engine tensor {
        core.wait %hf >= %r + 1
        core.wait %act >= %r - 1
        core.matmul %acc[0, %r mod 2, 0] [32, 1, 512], %w, %hr[0, %r mod 2, 0] [64, 1, 512]
        core.signal %mm
        core.signal %hc
      }
      core.engine scalar {
        core.wait %mm >= %r + 1
        core.wait %out >= %r - 1
        core.activation relu %ys[0, %r mod 2, 0] [32, 1, 512], %acc[0, %r mod 2, 0] [32, 1, 512]
        core.signal %act
      }
      core.engine dma1 {
        core.wait %act >= %r + 1
        core.wait %yc >= %r - 1
        core.dma %ys[0, %r mod 2, 0] [32, 1, 512] -> %yr[%r mod 2, 0, 0] [1, 32, 512]
        core.signal %out
        core.signal %yf
      }
    }
  }

  pipe.output "y" from %y full %y_full credit %y_credit
}
