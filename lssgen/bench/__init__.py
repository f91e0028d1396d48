"""Latency one can gate on: measuring a bundle, comparing two sides, and counts that need no clock."""
