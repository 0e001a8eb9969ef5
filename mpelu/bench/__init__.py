"""Timing: activations by themselves, and the training step of whole networks."""
