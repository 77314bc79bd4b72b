"""Frontends: from a file of another format to `nn`. One module per format."""
