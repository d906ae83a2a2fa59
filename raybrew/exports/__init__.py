"""Students in the forms that others use: Hugging Face folders with a model card, ONNX, int8, the hub."""
