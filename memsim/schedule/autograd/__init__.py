"""Autograd: the nodes of a forward pass, the order in which backward runs them, and when they die."""
