"""The parts of Colab's package that the course uses; on PYTHONPATH of a simulated machine."""
