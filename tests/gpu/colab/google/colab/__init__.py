"""Colab's own package as far as the course knows it; on PYTHONPATH of a simulated machine."""
