"""Small networks for tests: the architectures that users export, with random weights, in PyTorch or node by node."""
