"""``trimline inspect``: what a checkpoint, a plan, an ONNX export or a package holds, and what loads it."""

from exporters.onnx.sparsity import WeightPattern
from trimline.inspect.data import BlockWidth, Inspection, Loading, TensorPattern
from trimline.inspect.graph import Graph
from trimline.inspect.read import inspect_folder
from trimline.inspect.sparsity import inspect_sparsity, render_sparsity
from trimline.inspect.view import render_inspection

__all__ = [
    "BlockWidth",
    "Graph",
    "Inspection",
    "Loading",
    "TensorPattern",
    "WeightPattern",
    "inspect_folder",
    "inspect_sparsity",
    "render_inspection",
    "render_sparsity",
]
