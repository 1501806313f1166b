"""The models by name: their table, how they are built, loaded, stored and converted."""
