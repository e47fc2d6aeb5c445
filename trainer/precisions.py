"""The precisions of a model file, and what each file is called in a bundle. Imports nothing: recipes and --help ask here."""

PRECISIONS = {
    "fp32": "model.onnx",
    "int8": "model.int8.onnx",
    "int8_weights": "model.int8_weights.onnx",
}

AUTO = "auto"  # no precision of its own: whichever of them is fastest within the accuracy gate, as measured
