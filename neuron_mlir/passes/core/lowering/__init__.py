"""How `core-lower` turns layers into instructions: layouts, code building, and one file per family of layers."""
