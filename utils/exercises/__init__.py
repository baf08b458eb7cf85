"""The judges of the exercises, a module a notebook."""
