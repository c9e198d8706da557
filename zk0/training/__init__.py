"""A client's work and the server's judgement: tensors are here and nowhere above."""
