"""Weights in files: tensor specs, digests, writing, quantization, deltas, LoRA factors, control variates."""
