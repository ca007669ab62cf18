"""How good: image and pixel AUROC on labelled sets, against peers, and each part switched off."""
