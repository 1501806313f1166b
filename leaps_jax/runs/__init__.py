"""What runs write: their folders and pictures, and large runs from tables."""
