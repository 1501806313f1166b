"""Synthetic actions: a world in which the motion that defines each class is known."""
