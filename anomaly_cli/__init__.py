"""Audit folders of images: learn what normal looks like, rank what deviates, show where."""
