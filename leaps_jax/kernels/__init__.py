"""One operation a module, in the form that each machine runs fast; JAX alone."""
