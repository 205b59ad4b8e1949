"""Decompositions of the covariance: one module a method."""
