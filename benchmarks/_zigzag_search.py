"""What runs in ZigZag's own environment: its search for its own ResNet-18 on one of its accelerators.

Prints a line of JSON at the end; its log, a line for each layer as it begins, goes to standard error.
"""

# Nothing of this project is installed there.
import json
import sys
import time
from pathlib import Path

start = time.perf_counter(), time.process_time()

import zigzag  # noqa: E402  # pyright: ignore[reportMissingImports]
from zigzag.api import get_hardware_performance_zigzag  # noqa: E402  # pyright: ignore

accelerator, folder = sys.argv[1:]
inputs = Path(zigzag.__file__).parent / "inputs"  # pyright: ignore
loaded = time.perf_counter(), time.process_time()
energy, latency, layers = get_hardware_performance_zigzag(  # pyright: ignore
    str(inputs / "workload" / "resnet18.onnx"),
    str(inputs / "hardware" / f"{accelerator}.yaml"),
    str(inputs / "mapping" / f"{accelerator}.yaml"),
    opt="latency",
    dump_folder=folder,
    loma_show_progress_bar=False,
)
done = time.perf_counter(), time.process_time()
print(
    json.dumps(
        {
            "model": str(inputs / "workload" / "resnet18.onnx"),
            "start_up": [b - a for a, b in zip(start, loaded, strict=True)],
            "search": [b - a for a, b in zip(loaded, done, strict=True)],
            "cycles": latency,
            "picojoules": energy,
        }
    )
)
