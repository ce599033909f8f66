"""Export trained tickets as smaller networks, without dead channels, with ONNX files; load them again."""
