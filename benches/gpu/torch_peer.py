"""PyTorch on the catalogue's layers, to stand beside what the bench `gpu` prints.

Times forward and both gradients on the first CUDA device with cuDNN, float32, TF32 off, channels-last
tensors, each median over turns of calls that are waited for once. Needs PyTorch and Python 3.11.
"""

import argparse
import json
import pathlib
import statistics
import time
import tomllib

import torch

CATALOGUE = pathlib.Path(__file__).parents[2] / "crates" / "mec-core" / "layers.toml"


def cases(layer, batch):
    """The three passes of a layer as functions of nothing."""
    height, width, channels_in = layer["input"]
    kernel_h, kernel_w, channels_out = layer["kernel"]
    groups = layer.get("groups", 1)
    options = dict(
        stride=layer["stride"],
        padding=layer.get("padding", 0),
        dilation=layer.get("dilation", 1),
        groups=groups,
    )
    layout = dict(device="cuda", dtype=torch.float32)
    last = torch.channels_last
    x = torch.rand(batch, channels_in, height, width, **layout).to(memory_format=last)
    weight = torch.rand(channels_out, channels_in // groups, kernel_h, kernel_w, **layout)
    weight = weight.to(memory_format=last)
    dy = torch.rand_like(torch.nn.functional.conv2d(x, weight, **options))

    def backward(mask):
        return torch.ops.aten.convolution_backward(
            dy,
            x,
            weight,
            None,
            [options["stride"]] * 2,
            [options["padding"]] * 2,
            [options["dilation"]] * 2,
            False,
            [0, 0],
            groups,
            mask,
        )

    yield "fwd", lambda: torch.nn.functional.conv2d(x, weight, **options)
    yield "bwdx", lambda: backward([True, False, False])
    yield "bwdw", lambda: backward([False, True, False])


def milliseconds(call, rounds, burst):
    """The median time of a call."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    calls = max(1, min(200, int(burst / 1e3 / (time.perf_counter() - begin))))
    turns = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        turns.append((time.perf_counter() - begin) * 1e3 / calls)
    return statistics.median(turns)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=pathlib.Path, help="a file to add the record to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--burst", type=float, default=100.0, help="milliseconds of a turn")
    arguments = parser.parse_args()

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    for layer in tomllib.loads(CATALOGUE.read_text())["layer"]:
        for batch in layer["batch"]:
            for name, call in cases(layer, batch):
                ms = milliseconds(call, arguments.rounds, arguments.burst)
                print(f"{layer['name']} b{batch} {name} {ms:.3f} ms")
                if arguments.json:
                    line = dict(
                        contender="torch", layer=layer["name"], batch=batch, ms=ms
                    )
                    line["pass"] = name
                    with arguments.json.open("a") as record:
                        record.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
