"""Any model file as one thing that can be called. In: a path. Out: an `Upscaler`."""
