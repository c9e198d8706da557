"""Policies: building, loading and saving them, their trainable weights, processors and LoRA factors.

What works for any LeRobot policy lies here; what depends on SmolVLA's architecture lies in `smolvla`.
"""
