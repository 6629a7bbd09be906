"""Schrödinger bridges between two samples: paths, drifts, integration, fitting, and the pairs whose bridge is known in closed form."""
