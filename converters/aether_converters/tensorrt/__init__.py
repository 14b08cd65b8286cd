"""TensorRT and TensorRT-RTX. In: an ONNX graph. Out: a plan, and the JSON that describes it."""
