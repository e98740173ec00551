"""jaxrec: dynamic user-interest evolution with a graph, text and event sequences, in JAX."""
