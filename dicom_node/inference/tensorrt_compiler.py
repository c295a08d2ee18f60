"""From an ONNX network to a TensorRT plan. No GPU is touched here.

TensorRT for RTX compiles for a GPU that is elsewhere; data-centre TensorRT only for the one that
is here. Both have the same API.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dicom_node.errors import EngineError

Precision = Literal["fp16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")  # the faster first
RECIPE = 1  # counts up whenever another plan would come out of the same network
RUNTIMES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
_KEPT_MESSAGES = 20


Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class Batches(NamedTuple):
    """The optimisation profile: frames a call, least, usual and most."""

    least: int = 1
    usual: int = 8
    most: int = 64


@dataclass(frozen=True)
class Tensor:
    """One input or output of a plan; -1 is the batch axis. `profile` is empty where it has none."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    profile: tuple[tuple[int, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in a plan file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tensor:
        """Read what :meth:`to_json` wrote."""
        profile = tuple(tuple(shape) for shape in value["profile"])
        return cls(value["name"], value["dtype"], tuple(value["shape"]), profile)


@dataclass(frozen=True)
class Compiled:
    """A plan and what goes in and out of it."""

    plan: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass
class Messages:
    """What TensorRT said last, so that an error can repeat it instead of "None"."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Remember one line."""
        self.lines = [*self.lines[1 - _KEPT_MESSAGES :], line]

    @property
    def last(self) -> str:
        """Return the last line, or that there was none."""
        return self.lines[-1] if self.lines else "it gave no reason"


@cache
def runtime() -> Any:
    """Return the TensorRT module of this machine (EngineError where there is none)."""
    for name in RUNTIMES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineError(f"{name} is installed but does not load: {error}") from error
    raise EngineError(
        'no TensorRT on this machine; pip install "dicom-node[gpu]", or set engine = "onnx"'
    )


def runtime_name() -> str:
    """Return name and version of the runtime, by which its plans are kept apart."""
    trt = runtime()
    return f"{trt.__name__.removesuffix('_bindings')} {trt.__version__}"


def logger(messages: Messages) -> Any:
    """Return a TensorRT logger that keeps warnings and errors instead of printing them."""
    trt = runtime()

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                messages.add(message)

    return Log()


def compile_plan(
    model: Path, precision: Precision, batches: Batches, capability: str,
    *, correlate_bits: int = 0, profiles: Mapping[str, Shapes] | None = None,
) -> Compiled:  # fmt: skip
    """Compile the network in `model`.

    Parameters
    ----------
    precision
        ``fp16``: convolutions and correlators in half precision; ``fp32``: nothing below float.
    capability
        Compute capability of the GPU it is for, ``SM89``.
    correlate_bits
        Number of carrier patterns that the network's output is also to be correlated with, on the
        device: input ``patterns (bits, samples)`` of unit norm, output ``soft (batch, bits)``.
    profiles
        Least, usual and most of every input, for a network that is dynamic beyond its batch.

    Raises
    ------
    EngineError
        TensorRT is missing, cannot read the network, or cannot compile for that GPU.
    """
    trt = runtime()
    messages = Messages()
    log = logger(messages)
    builder = trt.Builder(log)
    if builder is None:
        raise EngineError(f"{runtime_name()} cannot start: {messages.last}")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.read_bytes()):
        said = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineError(f"{model}: {runtime_name()} cannot read it: {said or messages.last}")
    if not (network.num_inputs and network.num_outputs):
        raise EngineError(f"{model}: holds no network")
    kept = _halve_convolutions(trt, network) if precision == "fp16" else []
    if correlate_bits:
        _add_correlators(trt, network, model, correlate_bits, precision)
    if profiles is None:
        profile = _profile(builder, network, model, batches)
    else:
        profile = _profile_of(builder, network, model, profiles)
    config = _configuration(trt, builder, profile, precision, capability)
    plan = builder.build_serialized_network(network, config)
    del kept  # TensorRT refers to the halved weights until the plan is made
    if plan is None:
        raise EngineError(f"{model}: {runtime_name()} cannot compile it: {messages.last}")
    return Compiled(
        bytes(plan),
        tuple(_described(network.get_input(i), profile) for i in range(network.num_inputs)),
        tuple(_described(network.get_output(i), None) for i in range(network.num_outputs)),
    )


def _profile(builder: Any, network: Any, model: Path, batches: Batches) -> Any:
    """Return the profile of every input with a batch axis (EngineError if none has)."""
    profile = builder.create_optimization_profile()
    dynamic = 0
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        if shape.index(-1) != 0 or shape.count(-1) > 1:
            raise EngineError(f"{model}: input {tensor.name} {shape} is dynamic beyond its batch")
        profile.set_shape(tensor.name, *((frames, *shape[1:]) for frames in batches))
        dynamic += 1
    if not dynamic:
        raise EngineError(f"{model}: no input has a batch axis; export it with one")
    return profile


def _profile_of(
    builder: Any, network: Any, model: Path, profiles: Mapping[str, Shapes]
) -> Any:  # fmt: skip
    """Return the profile that was named for every input (EngineError where one is missing)."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if -1 not in tuple(tensor.shape):
            continue
        if tensor.name not in profiles:
            raise EngineError(f"{model}: nobody says how large input {tensor.name} may be")
        profile.set_shape(tensor.name, *profiles[tensor.name])
    return profile


def _configuration(
    trt: Any, builder: Any, profile: Any, precision: Precision, capability: str
) -> Any:
    """Return the builder's configuration for one GPU (EngineError where it cannot be had)."""
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    if not hasattr(trt, "ComputeCapability"):
        return config  # data-centre TensorRT: for the GPU that is here
    known = trt.ComputeCapability.__members__
    if capability not in known:
        several = ", ".join(name for name in known if name.startswith("SM"))
        raise EngineError(f"{runtime_name()} compiles for {several}, not for {capability}")
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(known[capability], 0):
        raise EngineError(f"{runtime_name()} refuses to compile for {capability}")
    return config


def _halve_convolutions(trt: Any, network: Any) -> list[Any]:
    """Let every convolution work in half precision; return what must outlive the build.

    Only they: a local variance, for one, is a difference of two nearly equal numbers.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    users: dict[str, list[tuple[Any, int]]] = defaultdict(list)
    for layer in layers:
        for index in range(layer.num_inputs):
            if (tensor := layer.get_input(index)) is not None:
                users[tensor.name].append((layer, index))
    kept: list[Any] = []
    for layer in layers:
        if layer.type != trt.LayerType.CONVOLUTION:
            continue
        kept += _halve_weights(trt, layer)
        for index in range(layer.num_inputs):
            if (tensor := layer.get_input(index)) is not None:
                cast = network.add_cast(tensor, trt.DataType.HALF)
                layer.set_input(index, cast.get_output(0))
        output = layer.get_output(0)
        if output.is_network_output:
            raise EngineError(f"{layer.name} is an output itself: such a network has no fp16 plan")
        back = network.add_cast(output, trt.DataType.FLOAT).get_output(0)
        for user, index in users[output.name]:
            user.set_input(index, back)
    return kept


def _halve_weights(trt: Any, layer: Any) -> list[Any]:
    """Halve the weights a convolution holds itself; others are inputs, which the caller casts."""
    layer.__class__ = trt.IConvolutionLayer  # get_layer() returns the base class
    kept = []
    for name in ("kernel", "bias"):
        weights = np.asarray(getattr(layer, name))
        if weights.size:
            halved = weights.astype(np.float16)
            setattr(layer, name, trt.Weights(halved))
            kept.append(halved)
    return kept


def _add_correlators(
    trt: Any, network: Any, model: Path, bits: int, precision: Precision
) -> None:  # fmt: skip
    """Correlate the only output with `bits` carrier patterns, which are an input.

    In half precision a matrix product, summed in float by the GPU. In float a product by element
    and a sum, because TensorRT for RTX has no float matrix product for Turing.
    """
    whitened = network.get_output(0)
    if len(whitened.shape) != 2:
        raise EngineError(f"{model}: its output {tuple(whitened.shape)} cannot be correlated")
    samples = whitened.shape[1]
    if precision == "fp16":
        patterns = network.add_input("patterns", trt.DataType.HALF, (bits, samples))
        halved = network.add_cast(whitened, trt.DataType.HALF).get_output(0)
        plain, turned = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
        product = network.add_matrix_multiply(halved, plain, patterns, turned).get_output(0)
        soft = network.add_cast(product, trt.DataType.FLOAT).get_output(0)
    else:
        patterns = network.add_input("patterns", trt.DataType.FLOAT, (bits, samples))
        rows = network.add_shuffle(whitened)
        rows.reshape_dims = (-1, 1, samples)
        planes = network.add_shuffle(patterns)
        planes.reshape_dims = (1, bits, samples)
        product = network.add_elementwise(
            rows.get_output(0), planes.get_output(0), trt.ElementWiseOperation.PROD
        ).get_output(0)
        last = 1 << 2
        soft = network.add_reduce(product, trt.ReduceOperation.SUM, last, False).get_output(0)
    soft.name = "soft"
    network.mark_output(soft)


def _described(tensor: Any, profile: Any) -> Tensor:
    shape = tuple(tensor.shape)
    shapes: tuple[tuple[int, ...], ...] = ()
    if profile is not None and -1 in shape:
        shapes = tuple(tuple(each) for each in profile.get_shape(tensor.name))
    return Tensor(tensor.name, tensor.dtype.name, shape, shapes)
