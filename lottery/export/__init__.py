"""Trained tickets as smaller networks: dead channels removed, ONNX, and how to load them again."""
