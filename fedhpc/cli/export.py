"""`run.py export RUN --onnx FILE`: a finished model for other programs."""

import argparse
from pathlib import Path

from fedhpc.cli.common import Parser, add_output_file

HELP = "a finished model as ONNX, checked against PyTorch"
EXAMPLES = (
    "{run} export runs/fedavg --onnx model.onnx",
    "{run} export runs/local/sites/site1/model.pt --onnx site1.onnx",
)
TEXT = """Write a finished model as one ONNX file. onnxruntime must give PyTorch's logits
within 1e-4 of the largest, or nothing is written.

The file takes harmonised images float32 [n, C, H, W] and gives logits. Classes,
the steps of `harmonise` and the calibration are JSON in its metadata. Needs the
extra `export`: pip install 'fedhpc[export]'"""


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(TEXT, EXAMPLES)
    parser.add_argument("run_or_model", type=Path, metavar="RUN", help="a run directory, or a model.pt")
    add_output_file(parser, "--onnx", suffix=".onnx", text="the file to write", required=True, metavar="FILE")


def run(options: argparse.Namespace) -> int:
    """Export and say what was written."""
    from fedhpc.run.finished.export import export, export_text
    from fedhpc.util.progress import at_work
    from fedhpc.util.text import wrapped

    with at_work("export"):
        done = export(options.run_or_model, options.onnx)
    print(wrapped(export_text(done)))
    return 0
