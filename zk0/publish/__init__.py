"""What leaves the house: models to the Hub, numbers to Weights & Biases."""
