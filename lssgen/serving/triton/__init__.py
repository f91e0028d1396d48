"""A bundle as a model of NVIDIA's Triton: a repository that it can load, and the model that runs in it."""
