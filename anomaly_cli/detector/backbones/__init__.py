"""Backbones: a batch of images in, feature maps at several strides out."""
