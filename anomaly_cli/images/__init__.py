"""From a folder to 8-bit RGB pixels at network size: finding, decoding, quality, duplicates."""
