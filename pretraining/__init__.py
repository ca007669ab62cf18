"""The recipe of the embedded backbone's weights: pictures in, one safetensors file out."""
