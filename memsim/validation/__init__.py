"""Simulations held against recordings and against published measurements."""
