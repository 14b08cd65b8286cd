"""The network as a graph of another format. In: a float network. Out: ONNX, shapes, counts."""
