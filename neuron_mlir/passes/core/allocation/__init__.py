"""The parts of `core-allocate`: what lives when (`buffers`), how slots rotate (`rotate`), where it goes (`place`),
spills.
"""
