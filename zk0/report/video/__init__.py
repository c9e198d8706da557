"""Videos of rollouts and of predictions: drawing, encoding, decoding, motion analysis."""
