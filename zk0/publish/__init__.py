"""Publishing: checkpoints on the Hugging Face Hub, metrics at Weights & Biases, access tokens."""
