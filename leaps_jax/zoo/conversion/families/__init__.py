"""The published names of tensors, one file of literal tables a family."""
