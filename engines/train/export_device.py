"""Write what E1 does around the networks as two graphs without weights, for a device.

    python export_device.py --out ../device

choose.onnx is E1's loop (one turn), the carrier, its residual on the frame, and the picture D1
looks at next. How strong a cell may be, how soft the loop is and where the carrier is cut are the
node's to say: inputs. put_on.onnx rebuilds the residual from the integers a record keeps and adds
it: all of it in whole numbers, the very ones of dicom_node/watermark/synthesis.py. Products of
amplitudes and patterns are taken in float32, where sums of whole numbers below 2**24 are exact in
any order; everything larger is int32. ONNX has no arithmetic shift: what is divided is made
positive first.

Both take any number of frames of one size. Needs numpy and onnx, nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 17, 8
SIDE, BITS, CELLS = 128, 160, 16
AMPLITUDE, LIMIT = 31, 1023
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT32
FRAME = ("batch", "rows", "columns")


class Graph:
    """Nodes in the order they are called; every call returns the name of what comes out."""

    def __init__(self, name: str) -> None:
        self.name, self.nodes, self.constants = name, [], {}
        self.inputs, self.outputs = [], []

    def __call__(self, op: str, *inputs: str, **attributes) -> str:
        out = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def of(self, value, dtype=np.int32) -> str:
        """Return a constant; the same one for the same value."""
        array = np.asarray(value, dtype)
        name = f"c_{array.dtype}_{'_'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def takes(self, name: str, kind: int, *shape) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def gives(self, name: str, value: str, kind: int, *shape) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def write(self, path: Path) -> None:
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs,
                                  list(self.constants.values()))  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR
        model.producer_name = "dicom-node"
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())


def divided(g: Graph, value: str, divisor: str, room: int) -> str:
    """floor(value / divisor); both int32, |value| < 2**room, divisor a power of two below it."""
    lift = g.of(1 << room)
    return g("Sub", g("Div", g("Add", value, lift), divisor), g("Div", lift, divisor))


def rounded(g: Graph, value: str, divisor: str, room: int) -> str:
    """Nearest, halves up, as synthesis.scale does with a shift."""
    return divided(g, g("Add", value, g("Div", divisor, g.of(2))), divisor, room)


def cut(g: Graph, value: str, low: str, high: str) -> str:
    return g("Min", g("Max", value, low), high)


def part(g: Graph, places: str, which: int) -> str:
    """Row `which` of (3, targets): left, right, weight in 64ths."""
    return g("Gather", places, g.of(which), axis=0)


def between(g: Graph, source: str, places: str, axis: int) -> str:
    """Resample (batch, rows, columns) along one axis, rounded halves up (residual._stretch)."""
    left = g("Gather", source, part(g, places, 0), axis=axis)
    right = g("Gather", source, part(g, places, 1), axis=axis)
    weight = part(g, places, 2)
    if axis == 1:
        weight = g("Unsqueeze", weight, g.of([1], np.int64))
    step = g("Mul", g("Sub", right, left), weight)
    return g("Add", left, divided(g, g("Add", step, g.of(32)), g.of(64), 20))


def shape_of(g: Graph, carrier: str, gain: str, divisor: str, strengths: str) -> str:
    """up(c) * up(g), (batch, rows, columns): synthesis.residual_shape."""
    # What is beyond is cut at LIMIT anyway; before the product, so that it fits int32.
    most = g("Add", g("Div", g("Mul", divisor, g.of(LIMIT + 2)), gain), g.of(1))
    within = cut(g, carrier, g("Neg", most), most)
    small = rounded(g, g("Mul", within, gain), divisor, 30)
    small = cut(g, small, g.of(-LIMIT), g.of(LIMIT))
    up_carrier = between(g, between(g, small, "carrier_rows", 1), "carrier_columns", 2)
    fine = g("Mul", strengths, g.of(16))
    up_grid = between(g, between(g, fine, "grid_rows", 1), "grid_columns", 2)
    return g("Mul", up_carrier, up_grid)


def carrier_of(g: Graph, amplitudes: str) -> str:
    """Sum of amplitude times pattern, (batch, side, side) int32; exact, see above."""
    total = g("MatMul", amplitudes, "patterns")
    square = g("Reshape", total, g.of([-1, SIDE, SIDE], np.int64))
    return g("Cast", square, to=INT)


def take_places(g: Graph) -> None:
    for name, axis in (("rows", "rows"), ("columns", "columns")):
        for what in ("carrier", "grid"):
            g.takes(f"{what}_{name}", INT, 3, axis)


def choose() -> Graph:
    g = Graph("choose")
    one = ("batch", 1)
    g.takes("patterns", FLOAT, BITS, SIDE * SIDE)
    g.takes("words", FLOAT, "batch", BITS)
    g.takes("soft", FLOAT, "batch", BITS)
    g.takes("strengths", INT, "batch", CELLS, CELLS)
    for name in ("polarity", "step", "softness", "crest", "most_rms", "local_rms"):
        g.takes(name, FLOAT, *one)
    g.takes("small", FLOAT, "batch", SIDE, SIDE)
    g.takes("display", FLOAT, *FRAME)
    g.takes("host", INT, *FRAME)
    g.takes("low", INT, "batch", 1, 1)
    g.takes("high", INT, "batch", 1, 1)
    take_places(g)
    g.takes("shrink_rows", FLOAT, SIDE, "rows")
    g.takes("shrink_columns", FLOAT, "columns", SIDE)
    g.takes("blur_rows", FLOAT, SIDE, SIDE)
    g.takes("blur_columns", FLOAT, SIDE, SIDE)

    amplitudes = whole_amplitudes(g)
    carrier = carrier_of(g, amplitudes)
    gain, divisor = carrier_scale(g, carrier)
    shape = g("Cast", shape_of(g, carrier, gain, divisor, "strengths"), to=FLOAT)

    black, white = g.of(0, np.float32), g.of(1, np.float32)
    inside = g("And", g("GreaterOrEqual", "host", "low"), g("LessOrEqual", "host", "high"))
    shows = g("And", g("Greater", "display", black), g("Less", "display", white))
    seen = g("Mul", shape, g("Cast", g("And", inside, shows), to=FLOAT))
    size = g("Sqrt", mean(g, g("Mul", seen, seen)))
    share = mean(g, g("Cast", g("Greater", "strengths", g.of(0)), to=FLOAT))
    tried = g("Min", "most_rms", g("Mul", "local_rms", g("Sqrt", share)))
    each = g("Div", g("Mul", tried, "polarity"), g("Max", size, g.of(1e-6, np.float32)))
    shown = g("MatMul", g("MatMul", "shrink_rows", seen), "shrink_columns")
    shown = g("Mul", shown, g("Unsqueeze", each, g.of([2], np.int64)))
    picture = cut(g, g("Add", "small", shown), g.of(0, np.float32), g.of(1, np.float32))
    picture = g("MatMul", g("MatMul", "blur_rows", picture), "blur_columns")

    g.gives("amplitudes", g("Cast", amplitudes, to=INT), INT, "batch", BITS)
    g.gives("carrier_gain", gain, INT, "batch", 1, 1)
    g.gives("carrier_divisor", divisor, INT, "batch", 1, 1)
    for name, value in (("size", size), ("share", share), ("tried", tried)):
        g.gives(name, value, FLOAT, *one)
    g.gives("picture", g("Unsqueeze", picture, g.of([1], np.int64)), FLOAT, "batch", 1, SIDE, SIDE)
    return g


def mean(g: Graph, value: str) -> str:
    """Mean over a plane, (batch, 1)."""
    flat = g("Reshape", value, g.of([0, -1], np.int64))
    return g("ReduceMean", flat, axes=[1], keepdims=1)


def whole_amplitudes(g: Graph) -> str:
    """E1's loop, one turn from the soft bits of the cover: base.RobustEngine.encode."""
    soft = g("Div", g("Mul", "words", "soft"), "softness")
    need = g("Sigmoid", g("Neg", soft))
    amplitudes = g("Mul", g("Mul", "step", "words"), need)
    largest = g("ReduceMax", g("Abs", amplitudes), axes=[1], keepdims=1)
    largest = g("Max", largest, g.of(1e-6, np.float32))
    whole = g("Round", g("Mul", amplitudes, g("Div", g.of(AMPLITUDE, np.float32), largest)))
    return g("Mul", whole, "polarity")


def carrier_scale(g: Graph, carrier: str) -> tuple[str, str]:
    """Fixed-point gain and divisor that cut the carrier at `crest` deviations: (batch, 1, 1) each.

    Which of two neighbours is taken may hang on a rounding; whichever it is, it is recorded.
    """
    flat = g("Cast", g("Reshape", carrier, g.of([0, -1], np.int64)), to=FLOAT)
    # By 1024, so that the squares of 16384 samples add up in float32 without loss of weight.
    near = g("Mul", flat, g.of(1 / 1024, np.float32))
    deviation = g("Sqrt", g("ReduceMean", g("Mul", near, near), axes=[1], keepdims=1))
    deviation = g("Max", g("Mul", deviation, g.of(1024, np.float32)), g.of(1, np.float32))
    factor = g("Div", g.of(LIMIT, np.float32), g("Mul", "crest", deviation))
    # The most of the powers up to 2**19 that leaves the gain below 4096.
    powers = 2.0 ** np.arange(20)
    fits = g("Less", g("Mul", factor, g.of([powers], np.float32)), g.of(4095.49, np.float32))
    divisor = g("ReduceMax", g("Mul", g("Cast", fits, to=FLOAT), g.of([powers], np.float32)),
                axes=[1], keepdims=1)  # fmt: skip
    gain = g("Round", g("Mul", factor, divisor))
    whole = (g("Cast", value, to=INT) for value in (gain, divisor))
    gain, divisor = (g("Unsqueeze", value, g.of([2], np.int64)) for value in whole)
    return g("Max", gain, g.of(1)), divisor


def put_on() -> Graph:
    g = Graph("put_on")
    g.takes("patterns", FLOAT, BITS, SIDE * SIDE)
    g.takes("amplitudes", INT, "batch", BITS)
    g.takes("strengths", INT, "batch", CELLS, CELLS)
    for name in ("carrier_gain", "carrier_divisor", "gain", "divisor",
                 "low", "high", "pad_low", "pad_high"):  # fmt: skip
        g.takes(name, INT, "batch", 1, 1)
    g.takes("host", INT, *FRAME)
    take_places(g)
    carrier = carrier_of(g, g("Cast", "amplitudes", to=FLOAT))
    shape = shape_of(g, carrier, "carrier_gain", "carrier_divisor", "strengths")
    delta = rounded(g, g("Mul", shape, "gain"), "divisor", 29)
    size = g("Abs", delta)

    def outside(value: str) -> str:
        return g("Or", g("Less", value, "pad_low"), g("Greater", value, "pad_high"))

    def room(value: str) -> str:
        return g("And", g("Greater", g("Sub", value, size), "low"),
                 g("Less", g("Add", value, size), "high"))  # fmt: skip

    def may_change(value: str) -> str:
        within = g("And", outside(value), outside(g("Add", value, delta)))
        return g("And", within, room(value))

    changes = may_change("host")
    marked = g("Where", changes, g("Add", "host", delta), "host")
    # synthesis._seen: what may have been changed, and would have been had it been there before.
    undone = g("And", outside(marked), room(g("Sub", marked, delta)))
    undone = g("And", undone, g("Not", g("Equal", delta, g.of(0))))
    doubtful = g("And", undone, g("Not", may_change(marked)))
    g.gives("marked", marked, INT, *FRAME)
    g.gives("doubtful", doubtful, TensorProto.BOOL, *FRAME)
    g.gives("stayed", g("Not", changes), TensorProto.BOOL, *FRAME)
    return g


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lines = ["# Written by train/export_device.py.", "[files]"]
    for graph in (choose(), put_on()):
        path = args.out / f"{graph.name}.onnx"
        graph.write(path)
        lines.append(f'"{path.name}" = "{hashlib.sha256(path.read_bytes()).hexdigest()}"')
    (args.out / "card.toml").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
